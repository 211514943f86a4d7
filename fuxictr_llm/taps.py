"""The hooks that show a method what goes on in a model's forward pass, and bring in what it returns.

Shape symbols: `B` rows, `F` fields, `D` embedding dim, `R` width of the representation, `T` tasks, `L` length of a
sequence.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as functional
from fuxictr.pytorch.layers import FeatureEmbedding
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fuxictr_llm.anatomy import Anatomy
from fuxictr_llm.batches import rows_of
from fuxictr_llm.recorder import gives_its_input, vectors_by_field

if TYPE_CHECKING:
    from fuxictr_llm.enhancement import Enhancement


class Seen:
    """What one forward pass showed: field embeddings, representation and logits, the backbone's own and the final."""

    def __init__(self, anatomy: Anatomy, rows: int, project: Callable[[list[Tensor]], Tensor] | None = None):
        self.anatomy = anatomy
        self.rows = rows  # B
        self.embedded: list[tuple[Any, Any]] = []  # what the embedding module gave, and what it was given; one a call
        self.tower_inputs: dict[str, list[Tensor]] = {}  # one a call, [B, width] each
        self.tower_weights: dict[str, Tensor] = {}  # [1, width] each
        self.named: Tensor | None = None  # [B, R], where the config names the module
        self.activations: list[tuple[Tensor, Tensor]] = []  # logit and prediction of each call
        self.logit: Tensor | None = None  # [B, T], before any term is added
        self.final_logit: Tensor | None = None  # [B, T], with the terms and the replacement
        self.replacement: Tensor | None = None  # [B, R], what the method put in the representation's place
        self.stack: Tensor | None = None  # the backbone's own [B, F, D] or [B, F * D]
        self.stack_version = 0
        self._project = project
        self._by_field: dict[str, Tensor] | None = None
        self._embeddings: Tensor | None = None

    @property
    def by_field(self) -> dict[str, Tensor]:
        """Field -> its embedding, `[B, width]`, from the first call that gave one; a sequence's mean over what is real.

        Made when it is asked for: a backbone's own stack spares it.
        """
        if self._by_field is not None:
            return self._by_field
        found = self._by_field = {}
        for output, columns in self.embedded:
            for field, tensor in vectors_by_field(output, self.anatomy.fields).items():
                if field not in found:
                    tensor = _of_rows(tensor, self.rows)
                    if tensor.dim() == 3:
                        ids = _of_rows(columns[field], self.rows)
                        tensor = _mean_over_real(tensor, ids, self.anatomy.padding[field])
                    found[field] = tensor
        return found

    @property
    def embeddings(self) -> Tensor:
        """`[B, F, D]`, the fields in feature-map order; it may be the backbone's own tensor: read it only.

        `[B, 0, 0]` of a backbone that has none.
        """
        if self._embeddings is None and self.stack is not None and not self._stack_was_changed():
            self._embeddings = self.stack.view(len(self.stack), len(self.anatomy.fields), self.anatomy.embedding_dim)
        if self._embeddings is None and not self.anatomy.fields:
            self._embeddings = self.logit.new_zeros(self.rows, 0, 0)
        if self._embeddings is None:
            tensors = [self.by_field[name] for name in self.anatomy.fields]
            self._embeddings = torch.stack(tensors, dim=1) if self._project is None else self._project(tensors)
        return self._embeddings

    def _stack_was_changed(self) -> bool:
        """In place, by a dropout say. Inference does not do that: there the anatomy has looked."""
        return torch.is_grad_enabled() and self.stack._version != self.stack_version

    @property
    def representation(self) -> Tensor:
        """`[B, R]`, what feeds the logits: the inputs of all towers, or else the field embeddings, side by side."""
        if self.anatomy.towers:
            return torch.cat([self.tower_inputs[tower.module][tower.call] for tower in self.anatomy.towers], dim=-1)
        if self.named is not None:
            return self.named
        return torch.cat([self.by_field[name] for name in self.anatomy.fields], dim=-1)

    @property
    def final_representation(self) -> Tensor | None:
        """`[B, R]`, the replacement or else the backbone's own; None where the backbone has not even embeddings."""
        if self.replacement is not None or not self.anatomy.representation_width:
            return self.replacement
        return self.representation


class Taps:
    """The hooks of one model and what they have seen in the running forward pass.

    A plain object that model and hooks share: copying or pickling the model copies all of it together.
    """

    def __init__(self, anatomy: Anatomy, enhancement: "Enhancement"):
        self.anatomy = anatomy
        self.enhancement = enhancement
        self.active: frozenset[str] = frozenset()
        self.seen: Seen | None = None  # None outside of a forward pass: the hooks then do nothing
        # Kept because torch numbers hooks by process: their numbers go to no other hook of an unpickled model.
        self.handles: list[RemovableHandle] = []

    def attach(self, model: BaseModel) -> None:
        anatomy, module = self.anatomy, model.get_submodule
        if anatomy.embedding is not None:
            self.handles.append(module(anatomy.embedding).register_forward_hook(self.on_embeddings))
        if anatomy.stack is not None:
            self.handles.append(module(anatomy.stack).register_forward_hook(self.on_stack))
        for name in dict.fromkeys(tower.module for tower in anatomy.towers):
            self.handles.append(module(name).register_forward_pre_hook(functools.partial(self.on_tower, name)))
        if anatomy.named is not None and gives_its_input(module(anatomy.named)):
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
        self, model: BaseModel, forward: Callable[[Any], dict], inputs: Any, training: bool, watch: bool = False
    ) -> tuple[dict[str, Any], Seen | None]:
        """One forward pass: what it returns, and what it showed where a tap is active or `watch` is on."""
        self.active = self.enhancement.active_taps()
        if not training:
            self.active -= {"loss"}
            self.active = frozenset() if self.active == {"inputs"} else self.active
        if not self.active and not watch:
            return forward(inputs), None
        seen = self.seen = Seen(self.anatomy, rows_of(inputs), self.enhancement.field_projections)
        try:
            if "inputs" in self.active:
                self.enhancement.inputs(inputs)
            outputs = forward(inputs)
            return self._with_terms(model, outputs, seen), seen
        finally:
            self.seen = None

    def on_embeddings(self, _module: nn.Module, args: tuple, output: Any) -> None:
        if self.seen is not None:  # copies, because some backbones put other things into these dicts afterwards
            self.seen.embedded.append((_copied(output), _copied(args[0])))

    def on_stack(self, _module: FeatureEmbedding, _args: tuple, output: Tensor) -> None:
        # A compiler cannot ask for versions, and fuses the second stacking anyway.
        if self.seen is not None and self.seen.stack is None and not torch.compiler.is_compiling():
            self.seen.stack = output
            self.seen.stack_version = output._version if torch.is_grad_enabled() else 0

    def on_tower(self, name: str, module: nn.Linear, args: tuple) -> None:
        if self.seen is not None:
            self.seen.tower_inputs.setdefault(name, []).append(args[0])
            self.seen.tower_weights[name] = module.weight

    def on_named_input(self, _module: nn.Module, args: tuple) -> tuple | None:
        replacement = self._on_named(args[0])
        return None if replacement is None else (replacement, *args[1:])

    def on_named_output(self, _module: nn.Module, _args: tuple, output: Tensor) -> Tensor | None:
        return self._on_named(output)

    def _on_named(self, shown: Tensor) -> Tensor | None:
        """The first call counts; a replacement takes its place at once."""
        if self.seen is None or self.seen.named is not None:
            return None
        self.seen.named = shown.flatten(start_dim=1)
        if "representation" in self.active:
            self.seen.replacement = self.enhancement.representation(self.seen.named)
        return None if self.seen.replacement is None else self.seen.replacement.view_as(shown)

    def on_activation(self, _module: nn.Module, args: tuple, output: Tensor) -> None:
        if self.seen is not None:
            self.seen.activations.append((args[0], output))

    def _with_terms(self, model: BaseModel, outputs: Mapping[str, Any], seen: Seen) -> Mapping[str, Any]:
        """What the model returned, its predictions made anew where a term changes a logit."""
        predictions = [outputs[key] for key in self.anatomy.outputs]
        logits = [_logit_of(prediction, seen.activations, model) for prediction in predictions]
        logit = seen.logit = logits[0] if len(logits) == 1 else torch.cat(logits, dim=-1)
        if "embeddings" in self.active:
            self.enhancement.embeddings(seen.embeddings)
        if "representation" in self.active and self.anatomy.towers:
            logit = self._with_replacement(logit, seen)
        if "logit" in self.active:
            term = self.enhancement.logit(seen.embeddings if self.enhancement.reads_embeddings else None, logit)
            logit = logit if term is None else logit + term
        seen.final_logit = logit
        if logit is seen.logit:
            return outputs
        changed = {}
        for task, (key, name) in enumerate(zip(self.anatomy.outputs, self.anatomy.activations, strict=True)):
            activation = _own_activation(model) if name is None else model.get_submodule(name)
            changed[key] = activation(logit[:, task : task + 1]).view_as(predictions[task])
        return {**outputs, **changed}

    def _with_replacement(self, logit: Tensor, seen: Seen) -> Tensor:
        """The logits as if the towers had been given the replacement.

        They are linear and their outputs are summed, so the difference can be added afterwards; only then
        are the inputs of all towers known.
        """
        representation = seen.representation
        replacement = self.enhancement.representation(representation)
        if replacement is None:
            return logit
        seen.replacement = replacement
        differences = (replacement - representation).split(self.anatomy.widths, dim=-1)
        columns = list(logit.split(1, dim=-1))
        for tower, difference in zip(self.anatomy.towers, differences, strict=True):
            added = functional.linear(difference, seen.tower_weights[tower.module])
            columns[tower.task] = columns[tower.task] + (added if tower.scale == 1 else tower.scale * added)
        return columns[0] if len(columns) == 1 else torch.cat(columns, dim=-1)


def _logit_of(prediction: Tensor, calls: list[tuple[Tensor, Tensor]], model: BaseModel) -> Tensor:
    """`[B, 1]`: what the activation made the prediction of, or what a model's own sigmoid must have been given."""
    for logit, made in reversed(calls):
        if made is prediction:
            return logit.view(-1, 1)
    if isinstance(model.output_activation, nn.Identity):
        return prediction.view(-1, 1)
    return torch.logit(prediction, eps=torch.finfo(prediction.dtype).eps).view(-1, 1)


def _own_activation(model: BaseModel) -> Callable[[Tensor], Tensor]:
    return model.output_activation if isinstance(model.output_activation, nn.Identity) else torch.sigmoid


def _copied(given: Any) -> Any:
    return dict(given) if isinstance(given, Mapping) else given


def _of_rows(tensor: Tensor, rows: int) -> Tensor:
    """`[B, ...]`; a LongCTR model embeds each row's L items of the history and its target at once: the target's."""
    if len(tensor) == rows or not rows:
        return tensor
    return tensor.view(rows, -1, *tensor.shape[1:])[:, -1]


def _mean_over_real(tensor: Tensor, ids: Tensor, padding: int) -> Tensor:
    """`[B, L, D]` -> `[B, D]`: the mean over the positions that are not padding; zero where all are."""
    real = (ids.to(tensor.device) != padding).unsqueeze(-1).to(tensor.dtype)
    return (tensor * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
