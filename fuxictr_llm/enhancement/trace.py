"""What one forward pass of a model showed to a method."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fuxictr_llm.enhancement.anatomy import Anatomy
from fuxictr_llm.enhancement.recorder import vectors_by_field

if TYPE_CHECKING:
    pass


class ForwardTrace:
    """What one forward pass showed: field embeddings, representation and logits, the backbone's own and the final."""

    def __init__(self, anatomy: Anatomy, rows: int, project: Callable[[list[Tensor]], Tensor] | None = None):
        self.anatomy = anatomy
        self.rows = rows  # B
        self.embedded: list[tuple[Any, Any]] = []  # what the embedding module gave, and what it was given; one a call
        self.layer_inputs: dict[str, list[Tensor]] = {}  # one a call, [B, width] each
        self.layer_weights: dict[str, Tensor] = {}  # [1, width] each
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
        """`[B, R]`: the inputs of all logit layers side by side, or else the field embeddings."""
        if self.anatomy.logit_layers:
            inputs = [self.layer_inputs[layer.module][layer.call] for layer in self.anatomy.logit_layers]
            return torch.cat(inputs, dim=-1)
        if self.named is not None:
            return self.named
        return torch.cat([self.by_field[name] for name in self.anatomy.fields], dim=-1)

    @property
    def final_representation(self) -> Tensor | None:
        """`[B, R]`, the replacement or else the backbone's own; None where the backbone has not even embeddings."""
        if self.replacement is not None or not self.anatomy.representation_width:
            return self.replacement
        return self.representation


def _of_rows(tensor: Tensor, rows: int) -> Tensor:
    """`[B, ...]`; a LongCTR model embeds each row's L items of the history and its target at once: the target's."""
    if len(tensor) == rows or not rows:
        return tensor
    return tensor.view(rows, -1, *tensor.shape[1:])[:, -1]


def _mean_over_real(tensor: Tensor, ids: Tensor, padding: int) -> Tensor:
    """`[B, L, D]` -> `[B, D]`: the mean over the positions that are not padding; zero where all are."""
    real = (ids.to(tensor.device) != padding).unsqueeze(-1).to(tensor.dtype)
    return (tensor * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
