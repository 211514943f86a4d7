"""Which fields a model of a user's history reads: pairs of a target and a sequence, as FuxiCTR's models name them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from fuxictr.features import FeatureMap
from torch import Tensor

# A field, several that are read side by side, or a list with one of both for each pair.
Fields = str | tuple[str, ...] | list[str | tuple[str, ...] | list[str]]
Pair = tuple[tuple[str, ...], tuple[str, ...]]


def field_pairs(feature_map: FeatureMap, same_width: bool = True, **named: Fields) -> list[Pair]:
    """The fields of each target and those of its sequence.

    Args:
        feature_map: of the data set.
        same_width: whether a sequence has as many fields as its target.
        named: the model's two arguments, first that of the targets, by their names.

    Raises:
        ValueError: they name different numbers of fields, or a field that is not there, is no sequence, or is a
            sequence that is pooled before the model sees it.
    """
    (of_targets, targets), (of_sequences, sequences) = ((name, grouped(fields)) for name, fields in named.items())
    pairs = list(zip(targets, sequences, strict=False))
    wide = [pair for pair in pairs if same_width and len(pair[0]) != len(pair[1])]
    if wide or not pairs or len(targets) != len(sequences):
        raise ValueError(
            f"{of_targets} and {of_sequences} must name as many fields (got {named[of_targets]!r} and "
            f"{named[of_sequences]!r})"
        )
    for name in sum(targets, ()):
        check_field(feature_map, of_targets, name, sequence=False)
    for name in sum(sequences, ()):
        check_field(feature_map, of_sequences, name, sequence=True)
    return pairs


def check_field(feature_map: FeatureMap, argument: str, name: str, sequence: bool) -> None:
    """Whether a field can be a target, or a sequence, of a model.

    Raises:
        ValueError: it cannot; `argument` is what named it.
    """
    fields = {each: spec for each, spec in feature_map.features.items() if spec["type"] != "meta"}
    if name not in fields:
        raise ValueError(f"{argument} names {name!r}; the data set has the fields {', '.join(fields)}")
    is_sequence = fields[name]["type"] == "sequence"
    if sequence and not is_sequence:
        there = ", ".join(each for each, spec in fields.items() if spec["type"] == "sequence") or "none"
        raise ValueError(
            f"{argument} names {name!r} of type {fields[name]['type']}; sequences in the data set: {there}"
        )
    pooled = "Pooling" in str(fields[name].get("feature_encoder"))
    if sequence and pooled:
        raise ValueError(
            f"{argument} names {name!r}, which {fields[name]['feature_encoder']} pools before it is read; add "
            f"{{name: {name}, feature_encoder: null}} to feature_specs"
        )
    if is_sequence and not sequence and not pooled:
        raise ValueError(f"{argument} names {name!r}, a sequence that is not pooled; a target is one vector a row")


def check_others(feature_map: FeatureMap, read: Sequence[str]) -> None:
    """Whether all fields beside the sequences that are read have one vector a row.

    Raises:
        ValueError: a sequence is neither pooled nor read.
    """
    for name, spec in feature_map.features.items():
        if spec["type"] == "sequence" and not spec.get("feature_encoder") and name not in read:
            raise ValueError(
                f"sequence {name!r} is not pooled, and the model does not read it: give it a feature_encoder"
            )


def grouped(fields: Fields) -> list[tuple[str, ...]]:
    """The fields of each pair; YAML has lists where FuxiCTR's constructors have tuples."""
    each = fields if isinstance(fields, list) else [fields]
    return [(names,) if isinstance(names, str) else tuple(names) for names in each]


def side_by_side(embeddings: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """`[..., D]` of each field -> `[..., fields * D]`."""
    return torch.cat([embeddings[name] for name in names], dim=-1)


def others_of(feature_map: FeatureMap, embeddings: Mapping[str, Any], left_out: Sequence[str]) -> list[Tensor]:
    """The embeddings of the other fields in feature-map order, whatever the order of a batch's columns."""
    return [embeddings[name] for name in feature_map.features if name in embeddings and name not in left_out]


def order_of_real(real: Tensor, last: bool = False) -> Tensor:
    """`[B, L]` of truth -> positions that bring the real ones to the front of a row, or to its end, in their order."""
    return torch.argsort(real.long(), dim=1, descending=not last, stable=True)


def in_order(values: Tensor, order: Tensor) -> Tensor:
    """`[B, L, ...]` with the positions of each row in another order."""
    index = order.view(*order.shape, *[1] * (values.dim() - 2)).expand(*order.shape, *values.shape[2:])
    return values.gather(1, index)
