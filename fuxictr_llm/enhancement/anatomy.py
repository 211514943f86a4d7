"""Finds where a FuxiCTR model can be tapped, by one forward pass on a synthetic batch.

Shape symbols: `B` rows, `F` fields, `D` embedding dim, `R` width of the representation, `T` tasks, `L` length of a
sequence.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

from fuxictr_llm.common.errors import UserError, reason_of, unknown
from fuxictr_llm.enhancement.recorder import LogitLayer, Recorder, find_logit_layers
from fuxictr_llm.host.batches import synthetic_batch, synthetic_long_batch

# Config keys that choose a module where several would do.
TAP_KEYS = ("tap_embedding", "tap_representation")


@dataclass(frozen=True)
class Candidates:
    """The modules that the config keys in TAP_KEYS could choose.

    Attributes:
        embeddings: for `tap_embedding`: module -> the fields that it embeds with vectors.
        representations: for `tap_representation`: Linears of width 1 that were called with `[B, R]`.
    """

    embeddings: dict[str, tuple[str, ...]]
    representations: tuple[str, ...]


@dataclass(frozen=True)
class Anatomy:
    """The modules of a backbone that the taps are attached to, by name, so that a copied model finds its own.

    Attributes:
        backbone: name of the backbone's class.
        tasks: the T labels that it predicts.
        outputs: for each task, the key of its prediction in the model's output.
        activations: for each task, the module that turns the logit into the prediction, or None where the model
            does so without a module.
        fields: the F fields whose embeddings the taps see, in feature-map order.
        dims: the width of each of those embeddings.
        padding: the padding id of each field that is a sequence of ids.
        embedding: name of the module that makes the field embeddings; None where there is none.
        stack: name of the module whose output is these embeddings side by side; None where there is none.
        logit_layers: the calls of Linears whose outputs sum up to the logits; empty where there are none.
        named: the module that `tap_representation` names, where it is none of the logit layers: its output is the
            representation, or its input if it is a Linear of width 1.
        named_width: the width of that representation.
        candidates: the modules that the config could choose instead.
        missing: tap -> why it has nothing to see.
    """

    backbone: str
    tasks: tuple[str, ...]
    outputs: tuple[str, ...]
    activations: tuple[str | None, ...]
    fields: tuple[str, ...]
    dims: tuple[int, ...]
    padding: dict[str, int]
    embedding: str | None
    stack: str | None
    logit_layers: tuple[LogitLayer, ...]
    named: str | None = None
    named_width: int = 0
    candidates: Candidates = field(default=Candidates({}, ()), repr=False)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def embedding_dim(self) -> int | None:
        """D: the width that most fields' embeddings have, the larger one on a tie; None without fields."""
        counts = Counter(self.dims)
        return max(counts, key=lambda width: (counts[width], width)) if counts else None

    @property
    def widths(self) -> tuple[int, ...]:
        """The width of each part of a representation that can be replaced; R is their sum."""
        return tuple(layer.width for layer in self.logit_layers) or ((self.named_width,) if self.named else ())

    @property
    def representation_width(self) -> int:
        """R; without a representation in front of the logit, the width of all field embeddings side by side."""
        return sum(self.widths or self.dims)


def find_anatomy(
    model: BaseModel, tap_embedding: str | None = None, tap_representation: str | Sequence[str] | None = None
) -> Anatomy:
    """Run `model` once on a synthetic batch to find what its taps are attached to; the model stays as it was.

    Args:
        tap_embedding: the module that makes the field embeddings, instead of the one that covers most fields.
        tap_representation: the module whose output is the representation (of a Linear of width 1: its input), or
            several such Linears, instead of all whose outputs sum up to the logit.

    Raises:
        UserError: the model has no such module, or it does not return its predictions.
    """
    named = [tap_representation] if isinstance(tap_representation, str) else list(tap_representation or ())
    for key, name in [("tap_embedding", tap_embedding), *(("tap_representation", name) for name in named)]:
        _check_module(model, key, name)
    recorder = Recorder(model, also=tap_embedding, measured=named)
    with _restored(model), recorder.listening(), torch.enable_grad():
        outputs = _outputs_of(model)
        tasks, keys = _tasks_of(model, outputs)
        predictions = [outputs[key] for key in keys]
        activations = [recorder.activation_of(prediction) for prediction in predictions]  # module and logit, or None
        pairs = [*zip(predictions, activations, strict=True)]
        _check_probabilities(model, [prediction for prediction, activation in pairs if activation is None])
        logits = [prediction if activation is None else activation[1] for prediction, activation in pairs]
        shown = [None if activation is None else activation[1] for activation in activations]
        logit_layers = find_logit_layers(shown, recorder.linears)
    embedding, dims = _embedding_of(recorder, tap_embedding)
    fields = tuple(name for name in model.feature_map.features if name in dims)
    logit_layers, module, width = _representation_of(recorder, logit_layers, named)
    return Anatomy(
        backbone=getattr(model, "backbone_cls", type(model)).__name__,
        tasks=tasks,
        outputs=keys,
        activations=tuple(None if activation is None else activation[0] for activation in activations),
        fields=fields,
        dims=tuple(dims[name] for name in fields),
        padding=_padding(model.feature_map, fields),
        embedding=embedding,
        stack=recorder.stack_of(embedding, fields),
        logit_layers=logit_layers,
        named=module,
        named_width=width,
        candidates=_candidates(recorder),
        missing=_missing(recorder, fields, logit_layers or module, all(activations), logits),
    )


def tap_keys(params: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a config that `find_anatomy` takes."""
    return {key: params[key] for key in TAP_KEYS if params.get(key)}


def _check_module(model: nn.Module, key: str, name: str | None) -> None:
    modules = dict(model.named_modules())
    if name is not None and (not name or name not in modules):
        raise unknown("module", name, [known for known in modules if known], f"{key} of {type(model).__name__}")


def _outputs_of(model: BaseModel) -> Mapping[str, Any]:
    """The model's output for a synthetic batch, of LongCTR's form where it takes no other."""
    try:
        outputs = model.forward(synthetic_batch(model.feature_map))
    except Exception as error:  # anyone's class can fail in any way
        try:  # FuxiCTR's LongCTR models unpack a tuple; its history must not be shorter than their short one
            length = max(3, getattr(model, "short_seq_len", 3))
            outputs = model.forward(synthetic_long_batch(model.feature_map, length=length))
        except Exception:
            raise UserError(
                f"{type(model).__name__} cannot be tapped: its forward pass fails on columns like those of data set "
                f"{model.feature_map.dataset_id!r} ({type(error).__name__}: {reason_of(error)})"
            ) from error
    if not isinstance(outputs, Mapping):
        raise UserError(f"{type(model).__name__} cannot be tapped: its forward returns no dict with 'y_pred'")
    return outputs


def _tasks_of(model: BaseModel, outputs: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The labels that the model predicts, and the keys of their predictions."""
    labels = model.feature_map.labels
    if isinstance(outputs.get("y_pred"), Tensor):
        return (labels[0],), ("y_pred",)
    keys = [f"{label}_pred" for label in labels]
    if not all(isinstance(outputs.get(key), Tensor) for key in keys):
        wanted = " or ".join(map(repr, dict.fromkeys(["y_pred", *keys])))
        raise UserError(
            f"{type(model).__name__} cannot be tapped: its output has no {wanted} (it has {sorted(map(str, outputs))})"
        )
    return tuple(labels), tuple(keys)


def _check_probabilities(model: BaseModel, predictions: Sequence[Tensor]) -> None:
    """Check that a prediction made without an activation module is a probability: its logit is computed from it."""
    for prediction in predictions:
        if not isinstance(model.output_activation, nn.Identity) and not bool(
            ((prediction >= 0) & (prediction <= 1)).all()
        ):
            raise UserError(
                f"{type(model).__name__} cannot be tapped: its prediction is no probability; "
                "make it with self.output_activation(logit)"
            )


def _embedding_of(recorder: Recorder, chosen: str | None) -> tuple[str | None, dict[str, int]]:
    if chosen is None:
        return recorder.widest_embedding()
    module = recorder.embedding_module(chosen)
    dims = recorder.dims_of(module)
    if not dims:
        known = [name for name in recorder.embeddings if recorder.dims_of(name)]
        raise UserError(
            f"tap_embedding {chosen!r} gives no vectors of fields: neither a dict of them nor [B, F, D] with all F "
            f"fields; modules that do: {', '.join(known) or 'none'}"
        )
    return module, dims


def _representation_of(
    recorder: Recorder, logit_layers: tuple[LogitLayer, ...], named: Sequence[str]
) -> tuple[tuple[LogitLayer, ...], str | None, int]:
    """The logit layers, or name and width of the one module that is named and is no logit layer."""
    if not named:
        return logit_layers, None, 0
    chosen = tuple(layer for layer in logit_layers if layer.module in named)
    if {layer.module for layer in chosen} == set(named):
        return chosen, None, 0
    if len(named) > 1:
        others = sorted(set(named) - {layer.module for layer in chosen})
        raise UserError(
            f"tap_representation names {others[0]!r} beside others, but its output is no part of a sum that is the "
            "logit; name it alone"
        )
    shape = recorder.shapes.get(named[0])
    if shape is None or len(shape) < 2:
        shown = "was not called" if shape is None else f"has shape {list(shape)}"
        raise UserError(f"tap_representation {named[0]!r} {shown} in a forward pass; it must give [B, R]")
    return (), named[0], shape[1:].numel()


def _candidates(recorder: Recorder) -> Candidates:
    embeddings = {name: tuple(recorder.dims_of(name)) for name in recorder.embeddings}
    embeddings = {name: fields for name, fields in embeddings.items() if fields}
    return Candidates(embeddings, tuple(dict.fromkeys(call.module for call in recorder.linears)))


def _missing(
    recorder: Recorder, fields: tuple[str, ...], representation: Any, shows_logit: bool, logits: list[Tensor]
) -> dict[str, str]:
    missing = {}
    if not fields and not recorder.embeddings:
        missing["embeddings"] = "it has no module that embeds fields; tap_embedding can name one of another kind"
    elif not fields:
        missing["embeddings"] = "its embeddings are one number a field, not vectors"
    if not representation:
        reason = "no Linear of width 1 feeds the logit"
        if not shows_logit:
            reason = "its prediction is not what self.output_activation returned, so what feeds the logit is not seen"
        missing["representation"] = reason + ("; the field embeddings side by side are taken" if fields else "")
    if any(logit.numel() != len(logit) for logit in logits):
        missing["logit"] = "it is not one number a row"
    return missing


def _padding(feature_map: FeatureMap, fields: tuple[str, ...]) -> dict[str, int]:
    specs = {name: feature_map.features[name] for name in fields}
    return {name: spec.get("padding_idx") or 0 for name, spec in specs.items() if spec["type"] == "sequence"}


@contextlib.contextmanager
def _restored(model: BaseModel) -> Iterator[None]:
    """Evaluation mode for the block; afterwards modes, buffers (BatchNorm) and random numbers are as before.

    Frozen weights are trainable inside of it: logit layers are found through the autograd graph.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    model.eval()
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with preserved_rng(model.device):
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def preserved_rng(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """A context whose block leaves the states of torch's random generators, on the CPU and `device`, unchanged."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
