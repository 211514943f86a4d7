"""Folded methods: what remains of a trained method for serving, constant terms of the logit.

Shape symbols: `B` rows, `K` fields, `D` embedding dim, `P = K (K - 1) / 2` pairs `i < j`, row by row, `T` tasks.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fuxictr_llm.enhancement.anatomy import Anatomy
from fuxictr_llm.enhancement.base import Enhancement

SLICE_FLOATS = 2**18  # a MiB


def pair_matrix(weights: Tensor, num_fields: int) -> Tensor:
    """`[P] -> [K, K]`, or `[T, P] -> [T, K, K]`: symmetric, with zeros on its diagonal."""
    if weights.dim() > 1:
        return torch.stack([pair_matrix(one, num_fields) for one in weights])
    left, right = torch.triu_indices(num_fields, num_fields, offset=1, device=weights.device)
    upper = weights.new_zeros(num_fields, num_fields).index_put((left, right), weights)
    return upper + upper.T


def pair_sums(matrices: Tensor, embeddings: Tensor) -> Tensor:
    """`pair_sum` of one matrix, `[K, K] -> [B, 1]`, or of one a task, `[T, K, K] -> [B, T]`."""
    if matrices.dim() == 2:
        return pair_sum(matrices, embeddings)
    return torch.cat([pair_sum(matrix, embeddings) for matrix in matrices], dim=-1)


def pair_sum(matrix: Tensor, embeddings: Tensor) -> Tensor:
    """`sum_{i<j} g_ij <e_bi, e_bj>`, `[K, K], [B, K, D] -> [B, 1]`; `matrix` is symmetric, zero on its diagonal.

    Under autocast, embeddings that come out of a Linear are of half precision and the matrix is not.
    """
    return _PairSum.apply(matrix, embeddings.to(matrix.dtype))


class _PairSum(torch.autograd.Function):
    """`0.5 sum_d e^T G e`. G is symmetric, so the gradient by e is the product `G e` that the forward pass has made.

    Rows are processed in slices that fit the processor's cache: reading memory twice costs more than the product.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, embeddings: Tensor) -> Tensor:
        if not any(ctx.needs_input_grad):
            return _by_halves(matrix, embeddings)
        product, sums = torch.empty_like(embeddings), []
        for rows, target in zip(_slices(embeddings), _slices(product), strict=True):
            torch.matmul(matrix, rows, out=target)
            sums.append((target * rows).sum(dim=(1, 2)))
        ctx.save_for_backward(embeddings, product)
        return 0.5 * torch.cat(sums).unsqueeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        embeddings, product = ctx.saved_tensors
        by_matrix = None
        if ctx.needs_input_grad[0]:
            num_fields = embeddings.shape[1]
            by_matrix = embeddings.new_zeros(num_fields, num_fields)
            weights = (0.5 * gradient).unsqueeze(-1)
            for rows, weight in zip(_slices(embeddings), weights.split(_slice_rows(embeddings)), strict=True):
                columns = rows.transpose(1, 2).contiguous()  # [rows, D, K]: one product, not one a row
                by_matrix.addmm_((columns * weight).flatten(0, 1).T, columns.flatten(0, 1))
        return by_matrix, product * gradient.unsqueeze(-1)


def _by_halves(matrix: Tensor, embeddings: Tensor) -> Tensor:
    """The same sum where no gradient is needed: pairs across the two halves of the fields are multiplied only once."""
    num_fields, width = embeddings.shape[1:]
    half = (num_fields + 1) // 2
    upper, lower = matrix[:half].clone(), 0.5 * matrix[half:, half:]
    upper[:, :half] *= 0.5
    most_rows = min(_slice_rows(embeddings), len(embeddings))
    first = embeddings.new_empty(most_rows, half, width)
    second = embeddings.new_empty(most_rows, num_fields - half, width)
    sums = []
    for rows in _slices(embeddings):
        within_and_across = torch.matmul(upper, rows, out=first[: len(rows)]).mul_(rows[:, :half])
        within = torch.matmul(lower, rows[:, half:], out=second[: len(rows)]).mul_(rows[:, half:])
        sums.append(within_and_across.sum(dim=(1, 2)) + within.sum(dim=(1, 2)))
    return torch.cat(sums).unsqueeze(-1)


def _slices(tensor: Tensor) -> tuple[Tensor, ...]:
    return tensor.split(_slice_rows(tensor))


def _slice_rows(tensor: Tensor) -> int:
    """A GPU and a compiler take all rows at once."""
    if tensor.device.type != "cpu" or torch.compiler.is_compiling():
        return max(len(tensor), 1)
    return max(SLICE_FLOATS // max(tensor[:1].numel(), 1), 1)


class PairWeights(Enhancement):
    """Adds `sum_{i<j} w_ij <e_bi, e_bj>` to the logit, or to each of T logits one with weights of its own.

    Args:
        anatomy: names the K fields and the T tasks.
        weights: w, `[P]` or `[T, P]`; None where they are loaded afterwards.
    """

    weights: Tensor
    matrix: Tensor

    def __init__(self, config: Any, anatomy: Anatomy, weights: Tensor | None = None):
        super().__init__(config, anatomy)
        num_fields = len(anatomy.fields)
        if weights is None:
            weights = torch.zeros(*_each_task(anatomy), num_fields * (num_fields - 1) // 2)
        self.register_buffer("weights", weights)
        self.register_buffer("matrix", pair_matrix(weights, num_fields), persistent=False)

    def logit(self, embeddings: Tensor, logit: Tensor) -> Tensor:
        return pair_sums(self.matrix, embeddings)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.matrix.copy_(pair_matrix(self.weights, self.matrix.shape[-1]))


class Shift(Enhancement):
    """Adds one number to the logit, or to each of T logits one of its own.

    Args:
        anatomy: the backbone's.
        shift: a scalar, or `[T]`; None where it is loaded afterwards.
    """

    shift: Tensor
    reads_embeddings = False

    def __init__(self, config: Any, anatomy: Anatomy, shift: Tensor | None = None):
        super().__init__(config, anatomy)
        self.register_buffer("shift", torch.zeros(_each_task(anatomy)) if shift is None else shift)

    def logit(self, embeddings: Any, logit: Tensor) -> Tensor:
        return self.shift


def _each_task(anatomy: Anatomy) -> tuple[int, ...]:
    """The leading dimension T of what differs by task; none for a single task."""
    return (len(anatomy.tasks),) if len(anatomy.tasks) > 1 else ()


FOLDED = {cls.__name__: cls for cls in (PairWeights, Shift)}
