"""The fields that a model of a user's history reads: pairs of a target and a sequence, named as in FuxiCTR's models.

Shape symbols: `B` rows, `L` length of a sequence, `D` embedding dim.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fuxictr.features import FeatureMap
from torch import Tensor

# A field, several fields that are concatenated, or a list of these with one entry for each pair.
Fields = str | tuple[str, ...] | list[str | tuple[str, ...] | list[str]]
Pair = tuple[tuple[str, ...], tuple[str, ...]]


def field_pairs(feature_map: FeatureMap, same_width: bool = True, **arguments: Fields) -> list[Pair]:
    """The fields of each target, paired with the fields of its sequence.

    Args:
        feature_map: the columns of the data set.
        same_width: whether a sequence must have as many fields as its target.
        arguments: the two constructor arguments that name the fields, first the targets, then the sequences.

    Raises:
        ValueError: the arguments name different numbers of fields, a field that the data set does not have, a
            target that is a sequence, or a sequence that is none or is pooled before the model sees it.
    """
    target_argument, sequence_argument = arguments
    targets, sequences = (field_groups(fields) for fields in arguments.values())
    pairs = list(zip(targets, sequences, strict=False))
    unequal = [pair for pair in pairs if same_width and len(pair[0]) != len(pair[1])]
    if unequal or not pairs or len(targets) != len(sequences):
        raise ValueError(
            f"{target_argument} and {sequence_argument} must name the same number of fields, at least one (got "
            f"{arguments[target_argument]!r} and {arguments[sequence_argument]!r})"
        )
    for name in sum(targets, ()):
        check_field(feature_map, target_argument, name, sequence=False)
    for name in sum(sequences, ()):
        check_field(feature_map, sequence_argument, name, sequence=True)
    return pairs


def check_field(feature_map: FeatureMap, argument: str, name: str, sequence: bool) -> None:
    """Check that a field can be a model's target, or with `sequence` its sequence.

    Args:
        feature_map: the columns of the data set.
        argument: the constructor argument that names the field, for errors.
        name: of the field.
        sequence: whether the field must be a sequence.

    Raises:
        ValueError: it cannot.
    """
    fields = {each: spec for each, spec in feature_map.features.items() if spec["type"] != "meta"}
    if name not in fields:
        raise ValueError(f"{argument} names {name!r}; the data set has the fields {', '.join(fields)}")
    is_sequence = fields[name]["type"] == "sequence"
    if sequence and not is_sequence:
        sequences = ", ".join(each for each, spec in fields.items() if spec["type"] == "sequence") or "none"
        raise ValueError(
            f"{argument} names {name!r} of type {fields[name]['type']}; sequences in the data set: {sequences}"
        )
    pooled = "Pooling" in str(fields[name].get("feature_encoder"))
    if sequence and pooled:
        raise ValueError(
            f"{argument} names {name!r}, which {fields[name]['feature_encoder']} pools before it is read; add "
            f"{{name: {name}, feature_encoder: null}} to feature_specs"
        )
    if is_sequence and not sequence and not pooled:
        raise ValueError(f"{argument} names {name!r}, a sequence that is not pooled; a target is one vector a row")


def check_pooled(feature_map: FeatureMap, read: Sequence[str]) -> None:
    """Check that every sequence that the model does not read itself is pooled to one vector a row.

    Raises:
        ValueError: a sequence is neither pooled nor among those that are `read`.
    """
    for name, spec in feature_map.features.items():
        if spec["type"] == "sequence" and not spec.get("feature_encoder") and name not in read:
            raise ValueError(
                f"sequence {name!r} is not pooled, and the model does not read it: give it a feature_encoder"
            )


def field_groups(fields: Fields) -> list[tuple[str, ...]]:
    """The fields of each pair; YAML gives lists where FuxiCTR's constructors have tuples."""
    groups = fields if isinstance(fields, list) else [fields]
    return [(names,) if isinstance(names, str) else tuple(names) for names in groups]


def concat_fields(embeddings: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """The embeddings of the fields, `[..., D]` each, concatenated to `[..., fields * D]`."""
    return torch.cat([embeddings[name] for name in names], dim=-1)


def other_embeddings(feature_map: FeatureMap, embeddings: Mapping[str, Any], left_out: Sequence[str]) -> list[Tensor]:
    """The embeddings of all fields but those left out, in feature-map order, which a batch's columns may not have."""
    return [embeddings[name] for name in feature_map.features if name in embeddings and name not in left_out]


def packing_order(real: Tensor, at_end: bool = False) -> Tensor:
    """Positions `[B, L]` that move the real steps to the front of each row, or to its end, and keep their order.

    Args:
        real: `[B, L]`, true where a step is no padding.
        at_end: move them to the end.
    """
    return torch.argsort(real.long(), dim=1, descending=not at_end, stable=True)


def reorder(values: Tensor, order: Tensor) -> Tensor:
    """`[B, L, ...]` with the steps of each row at the positions in `order`, `[B, L]`."""
    index = order.view(*order.shape, *[1] * (values.dim() - 2)).expand(*order.shape, *values.shape[2:])
    return values.gather(1, index)
