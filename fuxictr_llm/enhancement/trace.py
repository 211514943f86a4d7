"""The trace of a forward pass: what a method's taps see of it.

Shape symbols: `B` rows, `F` fields, `D` embedding dim, `R` width of the representation, `T` tasks, `L` length of a
sequence.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fuxictr_llm.enhancement.anatomy import Anatomy
from fuxictr_llm.enhancement.recorder import vectors_by_field


def in_float32(tensor: Tensor) -> Tensor:
    """The tensor itself, or in float32 where it has half of that precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


class ForwardTrace:
    """Field embeddings, representation and logits of one forward pass: the backbone's own, and the final ones.

    All of it is in float32, even where the backbone runs under autocast.

    Attributes:
        rows: B.
        logit: `[B, T]`, before any term is added.
        final_logit: `[B, T]`, with the method's terms and replacement.
        replacement: `[B, R]`, what the method put in place of the representation; None without one.
    """

    logit: Tensor
    final_logit: Tensor

    def __init__(self, anatomy: Anatomy, rows: int, project: Callable[[list[Tensor]], Tensor] | None = None):
        self.anatomy = anatomy
        self.rows = rows
        self.embedded: list[tuple[Any, Any]] = []  # output and input of each call of the embedding module
        self.layer_inputs: dict[str, list[Tensor]] = {}  # logit layer -> [B, width] of each call
        self.layer_weights: dict[str, Tensor] = {}  # logit layer -> [1, width]
        self.named: Tensor | None = None  # [B, R], where the config names the representation's module
        self.activations: list[tuple[Tensor, Tensor]] = []  # logit and prediction of each call
        self.replacement: Tensor | None = None
        self.stack: Tensor | None = None  # the backbone's own [B, F, D] or [B, F * D]
        self.stack_version = 0
        self._project = project
        self._by_field: dict[str, Tensor] | None = None
        self._embeddings: Tensor | None = None

    @property
    def by_field(self) -> dict[str, Tensor]:
        """Field -> its embedding `[B, width]`, from the first call that gave one; of a sequence, its items' mean.

        Computed on first use: where the backbone has a stack of its own, it is not needed.
        """
        if self._by_field is None:
            self._by_field = {}
            for output, columns in self.embedded:
                for field, tensor in vectors_by_field(output, self.anatomy.fields).items():
                    if field not in self._by_field:
                        self._by_field[field] = self._row_vectors(field, tensor, columns)
        return self._by_field

    def _row_vectors(self, field: str, tensor: Tensor, columns: Any) -> Tensor:
        """`[B, width]` of a field's embeddings `[B, width]` or `[B, L, width]`; `columns` has the ids."""
        tensor = in_float32(_of_rows(tensor, self.rows))
        if tensor.dim() != 3:
            return tensor
        return _mean_of_items(tensor, _of_rows(columns[field], self.rows), self.anatomy.padding[field])

    @property
    def embeddings(self) -> Tensor:
        """`[B, F, D]`, the fields in feature-map order; never change it in place: it may be the backbone's own tensor.

        `[B, 0, 0]` for a backbone without field embeddings.
        """
        if self._embeddings is None:
            self._embeddings = self._make_embeddings()
        return self._embeddings

    def _make_embeddings(self) -> Tensor:
        fields, dims = self.anatomy.fields, self.anatomy.dims
        if not fields:
            return self.logit.new_zeros(self.rows, 0, 0)
        if self.stack is not None and not self._was_changed(self.stack):
            return in_float32(self.stack.view(len(self.stack), len(fields), dims[0]))
        tensors = [self.by_field[name] for name in fields]
        return torch.stack(tensors, dim=1) if self._project is None else self._project(tensors)

    def _was_changed(self, stack: Tensor) -> bool:
        """Whether it was changed in place, by a dropout say; for evaluation mode, the anatomy has ruled it out."""
        return torch.is_grad_enabled() and stack._version != self.stack_version

    @property
    def representation(self) -> Tensor:
        """`[B, R]`: the inputs of all logit layers side by side; without those, the field embeddings."""
        if self.anatomy.logit_layers:
            inputs = [in_float32(self.layer_inputs[layer.module][layer.call]) for layer in self.anatomy.logit_layers]
            return torch.cat(inputs, dim=-1)
        if self.named is not None:
            return self.named
        return torch.cat([self.by_field[name] for name in self.anatomy.fields], dim=-1)

    @property
    def final_representation(self) -> Tensor | None:
        """`[B, R]`, the replacement or else the backbone's own; None for a backbone without either."""
        if self.replacement is not None or not self.anatomy.representation_width:
            return self.replacement
        return self.representation


def _of_rows(tensor: Tensor, rows: int) -> Tensor:
    """`[B, ...]`; a LongCTR model embeds each row's history and target in one call: only the target is returned."""
    if len(tensor) == rows or not rows:
        return tensor
    return tensor.view(rows, -1, *tensor.shape[1:])[:, -1]


def _mean_of_items(tensor: Tensor, ids: Tensor, padding: int) -> Tensor:
    """`[B, L, D]` -> `[B, D]`: the mean over the positions that are not padding; zero where all are padding."""
    real = (ids.to(tensor.device) != padding).unsqueeze(-1).to(tensor.dtype)
    return (tensor * real).sum(dim=1) / real.sum(dim=1).clamp(min=1)
