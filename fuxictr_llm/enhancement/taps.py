"""The forward hooks that give a method's taps what they read, and put what they return into the model.

Shape symbols: `B` rows, `F` fields, `D` embedding dim, `R` width of the representation, `T` tasks, `L` length of a
sequence.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as functional
from fuxictr.pytorch.layers import FeatureEmbedding
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fuxictr_llm.enhancement.anatomy import Anatomy
from fuxictr_llm.enhancement.base import Enhancement, ForwardTrace, in_float32
from fuxictr_llm.enhancement.recorder import is_logit_layer
from fuxictr_llm.host.batches import as_loaded, moved_to, rows_of, with_columns


class Taps:
    """The hooks of one model and the trace of the forward pass that is running.

    A plain object that the model and its hooks share: copying or pickling the model copies it with its hooks.
    """

    def __init__(self, anatomy: Anatomy, enhancement: Enhancement, adds_columns: bool = False):
        self.anatomy = anatomy
        self.enhancement = enhancement
        self.adds_columns = adds_columns
        self.active: frozenset[str] = frozenset()
        self.trace: ForwardTrace | None = None  # None outside of a forward pass: then the hooks do nothing
        # Pickled with the model: torch numbers hooks by process, and an unpickled handle reserves its number.
        self.handles: list[RemovableHandle] = []

    def attach(self, model: BaseModel) -> None:
        """Put the hooks on the model's modules."""
        anatomy, module = self.anatomy, model.get_submodule
        if anatomy.embedding is not None:
            self.handles.append(module(anatomy.embedding).register_forward_hook(self.on_embeddings))
        if anatomy.stack is not None:
            self.handles.append(module(anatomy.stack).register_forward_hook(self.on_stack))
        for name in dict.fromkeys(layer.module for layer in anatomy.logit_layers):
            self.handles.append(module(name).register_forward_pre_hook(functools.partial(self.on_logit_layer, name)))
        if anatomy.named is not None and is_logit_layer(module(anatomy.named)):
            self.handles.append(module(anatomy.named).register_forward_pre_hook(self.on_named_input))
        elif anatomy.named is not None:
            self.handles.append(module(anatomy.named).register_forward_hook(self.on_named_output))
        for name in dict.fromkeys(filter(None, anatomy.activations)):
            self.handles.append(module(name).register_forward_hook(self.on_activation))

    @contextlib.contextmanager
    def attached(self, model: BaseModel) -> Iterator[None]:
        """The hooks are on the model for the block alone."""
        self.attach(model)
        try:
            yield
        finally:
            while self.handles:
                self.handles.pop().remove()

    def run(
        self,
        model: BaseModel,
        forward: Callable[[Any], dict[str, Any]],
        inputs: Any,
        training: bool,
        always: bool = False,
    ) -> tuple[dict[str, Any], ForwardTrace | None]:
        """One forward pass: its output, and its trace where a tap is active or `always` is set."""
        self.active = self.enhancement.active_taps()
        if not training:
            self.active -= {"loss"}
            idle = self.active == {"inputs"} and not self.adds_columns
            self.active = frozenset() if idle else self.active
        if not self.active and not always:
            return forward(inputs), None
        trace = self.trace = ForwardTrace(self.anatomy, rows_of(inputs), self.enhancement.field_projections)
        try:
            if "inputs" in self.active:
                inputs = self._with_columns(model, inputs)
            outputs = forward(inputs)
            with without_autocast(model.device):
                return self._with_terms(model, outputs, trace), trace
        finally:
            self.trace = None

    def _with_columns(self, model: BaseModel, inputs: Any) -> Any:
        """The batch with the columns that the method gives."""
        with without_autocast(model.device):
            added = self.enhancement.inputs(as_loaded(inputs))
        if not added:
            return inputs
        return with_columns(inputs, {name: moved_to(model.device, column) for name, column in added.items()})

    def on_embeddings(self, _module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self.trace is not None:  # copies, because some backbones change these dicts afterwards
            self.trace.embedded.append((_copied(output), _copied(args[0])))

    def on_stack(self, _module: FeatureEmbedding, _args: tuple[Any, ...], output: Tensor) -> None:
        # A compiler cannot ask for versions, and fuses the second stacking anyway.
        if self.trace is not None and self.trace.stack is None and not torch.compiler.is_compiling():
            self.trace.stack = output
            self.trace.stack_version = output._version if torch.is_grad_enabled() else 0

    def on_logit_layer(self, name: str, module: nn.Linear, args: tuple[Any, ...]) -> None:
        if self.trace is not None:
            self.trace.layer_inputs.setdefault(name, []).append(args[0])
            self.trace.layer_weights[name] = module.weight

    def on_named_input(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        replacement = self._on_named(args[0])
        return None if replacement is None else (replacement, *args[1:])

    def on_named_output(self, _module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> Tensor | None:
        return self._on_named(output)

    def _on_named(self, tensor: Tensor) -> Tensor | None:
        """Note the representation, of the first call alone; returns its replacement, if any."""
        if self.trace is None or self.trace.named is not None:
            return None
        self.trace.named = in_float32(tensor.flatten(start_dim=1))
        if "representation" in self.active:
            with without_autocast(tensor.device):
                self.trace.replacement = self.enhancement.representation(self.trace.named)
        replacement = self.trace.replacement
        return None if replacement is None else replacement.view_as(tensor).to(tensor.dtype)

    def on_activation(self, _module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if self.trace is not None:
            self.trace.activations.append((args[0], output))

    def _with_terms(self, model: BaseModel, outputs: dict[str, Any], trace: ForwardTrace) -> dict[str, Any]:
        """The model's output, with its predictions computed again where the method changed a logit."""
        predictions = [outputs[key] for key in self.anatomy.outputs]
        logits = [in_float32(_logit_of(prediction, trace.activations, model)) for prediction in predictions]
        logit = trace.logit = logits[0] if len(logits) == 1 else torch.cat(logits, dim=-1)
        if "embeddings" in self.active:
            self.enhancement.embeddings(trace.embeddings)
        if "representation" in self.active and self.anatomy.logit_layers:
            logit = self._with_replacement(logit, trace)
        if "logit" in self.active:
            embeddings: Any = trace.embeddings if self.enhancement.reads_embeddings else None
            term = self.enhancement.logit(embeddings, logit)
            logit = logit if term is None else logit + term
        trace.final_logit = logit
        if logit is trace.logit:
            return outputs
        changed = {}
        for task, (key, name) in enumerate(zip(self.anatomy.outputs, self.anatomy.activations, strict=True)):
            activation = _own_activation(model) if name is None else model.get_submodule(name)
            changed[key] = activation(logit[:, task : task + 1]).view_as(predictions[task])
        return {**outputs, **changed}

    def _with_replacement(self, logit: Tensor, trace: ForwardTrace) -> Tensor:
        """The logits as if the logit layers had been given the replacement.

        They are linear and their outputs are summed, so the difference can be added afterwards, when the inputs of
        all of them are known.
        """
        representation = trace.representation
        replacement = self.enhancement.representation(representation)
        if replacement is None:
            return logit
        trace.replacement = replacement
        differences = (replacement - representation).split(self.anatomy.widths, dim=-1)
        columns = list(logit.split(1, dim=-1))
        for layer, difference in zip(self.anatomy.logit_layers, differences, strict=True):
            added = functional.linear(difference, trace.layer_weights[layer.module])
            columns[layer.task] = columns[layer.task] + (added if layer.scale == 1 else layer.scale * added)
        return columns[0] if len(columns) == 1 else torch.cat(columns, dim=-1)


def without_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """A context in which a method's terms are computed in float32, whatever the backbone runs in."""
    on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else contextlib.nullcontext()


def _logit_of(prediction: Tensor, calls: list[tuple[Tensor, Tensor]], model: BaseModel) -> Tensor:
    """`[B, 1]`: the input of the activation that made the prediction, or else the prediction's inverse sigmoid."""
    for logit, output in reversed(calls):
        if output is prediction:
            return logit.view(-1, 1)
    if isinstance(model.output_activation, nn.Identity):
        return prediction.view(-1, 1)
    return torch.logit(prediction, eps=torch.finfo(prediction.dtype).eps).view(-1, 1)


def _own_activation(model: BaseModel) -> Callable[[Tensor], Tensor]:
    return model.output_activation if isinstance(model.output_activation, nn.Identity) else torch.sigmoid


def _copied(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value
