"""The hooks that show a method what goes on in a model's forward pass, and bring in what it returns.

Shape symbols: `B` rows, `F` fields, `D` embedding dim, `R` width of the representation.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as functional
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fuxictr_llm.anatomy import Anatomy

if TYPE_CHECKING:
    from fuxictr_llm.enhancement import Enhancement


class Seen:
    """What one forward pass showed: field embeddings, representation and logit, the backbone's own and the final."""

    def __init__(self, anatomy: Anatomy):
        self.anatomy = anatomy
        self.by_field: dict[str, Tensor] = {}
        self.tower_inputs: dict[str, list[Tensor]] = {}  # one a call, [B, width] each
        self.tower_weights: dict[str, Tensor] = {}  # [1, width] each
        self.activation_calls = 0
        self.logit: Tensor | None = None  # [B, 1], before any term is added
        self.final_logit: Tensor | None = None  # [B, 1], with the terms and the replacement
        self.replacement: Tensor | None = None  # [B, R], what the method put in the representation's place
        self.stack: Tensor | None = None  # the backbone's own [B, F, D] or [B, F * D]
        self.stack_version = 0
        self._embeddings: Tensor | None = None

    @property
    def embeddings(self) -> Tensor:
        """`[B, F, D]`, the fields in feature-map order; it may be the backbone's own tensor: read it only."""
        if self._embeddings is None and self.stack is not None and not self._stack_was_changed():
            self._embeddings = self.stack.view(len(self.stack), len(self.anatomy.fields), -1)
        if self._embeddings is None:
            self._embeddings = torch.stack([self.by_field[name] for name in self.anatomy.fields], dim=1)
        return self._embeddings

    def _stack_was_changed(self) -> bool:
        """In place, by a dropout say. Inference does not do that: there the anatomy has looked."""
        return torch.is_grad_enabled() and self.stack._version != self.stack_version

    @property
    def representation(self) -> Tensor:
        """`[B, R]`, the input of the logit layer; several towers side by side."""
        return torch.cat([self.tower_inputs[name][call] for name, call in self.anatomy.towers], dim=-1)

    @property
    def final_representation(self) -> Tensor | None:
        """`[B, R]`, the replacement or else the backbone's own; None where the backbone has no representation."""
        if self.replacement is not None or not self.anatomy.towers:
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
        if self.anatomy.embedding is not None:
            embedding = model.get_submodule(self.anatomy.embedding)
            self.handles.append(embedding.register_forward_hook(self.on_embeddings))
        if self.anatomy.stack is not None:
            self.handles.append(model.get_submodule(self.anatomy.stack).register_forward_hook(self.on_stack))
        for name in dict(self.anatomy.towers):
            tower_hook = functools.partial(self.on_tower, name)
            self.handles.append(model.get_submodule(name).register_forward_pre_hook(tower_hook))
        self.handles.append(model.output_activation.register_forward_pre_hook(self.on_activation))

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
        self, forward: Callable[[dict], dict], inputs: dict[str, Tensor], training: bool, watch: bool = False
    ) -> tuple[dict[str, Any], Seen | None]:
        """One forward pass: what it returns, and what it showed where a tap is active or `watch` is on."""
        self.active = self.enhancement.active_taps()
        if not training:
            self.active -= {"loss"}
            self.active = frozenset() if self.active == {"inputs"} else self.active
        self.seen = Seen(self.anatomy) if self.active or watch else None
        try:
            if "inputs" in self.active:
                self.enhancement.inputs(inputs)
            return forward(inputs), self.seen
        finally:
            self.seen = None

    def on_embeddings(self, _module: nn.Module, args: tuple, output: dict[str, Tensor]) -> None:
        if self.seen is None:
            return
        for field, tensor in output.items():
            if field in self.anatomy.fields and field not in self.seen.by_field:
                if tensor.dim() == 3:
                    tensor = _mean_over_real(tensor, args[0][field], self.anatomy.padding[field])
                self.seen.by_field[field] = tensor

    def on_stack(self, _module: nn.Module, _args: tuple, output: Tensor) -> None:
        # A compiler cannot ask for versions, and fuses the second stacking anyway.
        if self.seen is not None and self.seen.stack is None and not torch.compiler.is_compiling():
            self.seen.stack = output
            self.seen.stack_version = output._version if torch.is_grad_enabled() else 0

    def on_tower(self, name: str, module: nn.Linear, args: tuple) -> None:
        if self.seen is not None:
            self.seen.tower_inputs.setdefault(name, []).append(args[0])
            self.seen.tower_weights[name] = module.weight

    def on_activation(self, _module: nn.Module, args: tuple) -> tuple | None:
        seen = self.seen
        if seen is None:
            return None
        seen.activation_calls += 1
        if seen.activation_calls != self.anatomy.activation_call + 1:
            return None
        logit = seen.logit = args[0]
        if "embeddings" in self.active:
            self.enhancement.embeddings(seen.embeddings)
        if "representation" in self.active and self.anatomy.towers:
            logit = self._with_replacement(logit, seen)
        if "logit" in self.active:
            term = self.enhancement.logit(seen.embeddings, logit)
            logit = logit if term is None else logit + term
        seen.final_logit = logit
        return None if logit is args[0] else (logit, *args[1:])

    def _with_replacement(self, logit: Tensor, seen: Seen) -> Tensor:
        """The logit as if the towers had been given the replacement.

        They are linear and their outputs are summed, so the difference can be added afterwards; only then
        are the inputs of all towers known.
        """
        representation = seen.representation
        replacement = self.enhancement.representation(representation)
        if replacement is None:
            return logit
        seen.replacement = replacement
        differences = (replacement - representation).split(self.anatomy.widths, dim=-1)
        for (name, _), difference in zip(self.anatomy.towers, differences, strict=True):
            logit = logit + functional.linear(difference, seen.tower_weights[name])
        return logit


def _mean_over_real(tensor: Tensor, ids: Tensor, padding: int) -> Tensor:
    """`[B, L, D]` -> `[B, D]`: the mean over the positions that are not padding; zero where all are."""
    real = (ids.to(tensor.device) != padding).unsqueeze(-1).to(tensor.dtype)
    return (tensor * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
