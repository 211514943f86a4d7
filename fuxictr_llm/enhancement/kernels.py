"""What methods compute over field embeddings in every step, as fast as torch can on a processor with caches.

Rows are processed in slices that fit the processor's cache: reading memory twice costs more than most of the
arithmetic. On GPUs and under a compiler there is one slice.

Shape symbols: `B` rows, `K` fields, `D` embedding dim, `P = K (K - 1) / 2` pairs `i < j`, row by row, `T` tasks.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SLICE_FLOATS = 2**19  # two MiB
NARROW = 16  # numbers in a row of a processor's registers
LOG2_E = math.log2(math.e)
SAFE_EXPONENT = 40.0  # the exponentials of numbers up to it, and their sums, are far from float32's limits


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
    """`0.5 sum_d e^T G e`. G is symmetric, so the gradient by e is the product `G e` that the forward pass has made."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, embeddings: Tensor) -> Tensor:
        if not any(ctx.needs_input_grad):
            buffer = torch.empty_like(embeddings[: _slice_rows(embeddings)])
            sums = [
                _product(matrix, rows, out=buffer[: rows.shape[0]]).mul_(rows).sum(dim=(1, 2))
                for rows in _slices(embeddings)
            ]
            return 0.5 * torch.cat(sums).unsqueeze(-1)
        product = torch.empty_like(embeddings)
        sums = [
            (_product(matrix, rows, out=target) * rows).sum(dim=(1, 2))
            for rows, target in zip(_slices(embeddings), _slices(product), strict=True)
        ]
        ctx.save_for_backward(embeddings, product)
        return 0.5 * torch.cat(sums).unsqueeze(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
        embeddings, product = ctx.saved_tensors
        by_matrix = _by_matrix(embeddings, 0.5 * gradient) if ctx.needs_input_grad[0] else None
        return by_matrix, product * gradient.unsqueeze(-1)


def _product(matrix: Tensor, rows: Tensor, out: Tensor) -> Tensor:
    """`G e_b` of each row, `[K, K], [B, K, D] -> [B, K, D]`.

    On a CPU, small products a row take twice the time of one large product where D is narrow.
    """
    if not _is_eager_cpu(rows) or rows.shape[2] >= NARROW:
        return torch.matmul(matrix, rows, out=out)
    fields = rows.transpose(0, 1).flatten(1)
    product = torch.mm(matrix, fields, out=torch.empty_like(fields))  # with `out`, autocast leaves it alone
    return out.copy_(product.unflatten(1, (-1, rows.shape[2])).transpose(0, 1))


def _by_matrix(embeddings: Tensor, weights: Tensor) -> Tensor:
    """`sum_b w_b e_b e_b^T`, `[B, K, D], [B, 1] -> [K, K]`, as one product a slice, not one a row."""
    num_fields = embeddings.shape[1]
    padded = -(-num_fields // 8) * 8  # a product of such a size takes two thirds of the time
    total = embeddings.new_zeros(padded, padded)
    for rows, weight in zip(_slices(embeddings), weights.split(_slice_rows(embeddings)), strict=True):
        fields = rows.new_zeros(padded, len(rows), rows.shape[2])
        fields[:num_fields] = rows.transpose(0, 1)
        total.addmm_((fields * weight).flatten(1), fields.flatten(1).T)
    return total[:num_fields, :num_fields]


def mean_log_softmax(embeddings: Tensor) -> Tensor:
    """`(1/B) sum_b log softmax(e_b)` over the last dimension, `[B, K, D] -> [K, D]`."""
    # To ask a GPU for the range of its numbers would wait for it.
    if _is_eager_cpu(embeddings) and len(embeddings):
        lowest, highest = embeddings.detach().aminmax()
        if lowest > -SAFE_EXPONENT and highest < SAFE_EXPONENT:
            return _MeanLogSoftmax.apply(embeddings)
    return embeddings.log_softmax(dim=-1).mean(dim=0)


class _MeanLogSoftmax(torch.autograd.Function):
    """The same without first subtracting each vector's largest number, which costs more than all the rest."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor) -> Tensor:
        exponentials, sums = torch.empty_like(embeddings), embeddings.new_empty(*embeddings.shape[:2], 1)
        ones = embeddings.new_ones(embeddings.shape[-1], 1)
        size = _slice_rows(embeddings)
        tensors = embeddings, exponentials, sums
        for rows, exponential, total in zip(*(tensor.split(size) for tensor in tensors), strict=True):
            torch.mul(rows, LOG2_E, out=exponential).exp2_()  # half the time of exp
            torch.mm(exponential.flatten(0, 1), ones, out=total.flatten(0, 1))  # half the time of sum
        ctx.save_for_backward(exponentials, sums)
        return embeddings.mean(dim=0) - sums.log().mean(dim=0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        exponentials, sums = ctx.saved_tensors
        gradient = gradient / len(exponentials)
        factors = gradient.sum(dim=-1, keepdim=True) / sums
        by_embeddings = torch.empty_like(exponentials)
        size = _slice_rows(exponentials)
        tensors = exponentials, factors, by_embeddings
        for exponential, factor, target in zip(*(tensor.split(size) for tensor in tensors), strict=True):
            torch.mul(exponential, factor, out=target)
            torch.sub(gradient, target, out=target)
        return by_embeddings


def _is_eager_cpu(tensor: Tensor) -> bool:
    """Whether rows are taken slice by slice: a GPU and a compiler take all at once."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def _slices(tensor: Tensor) -> tuple[Tensor, ...]:
    return (tensor,) if torch.compiler.is_compiling() else tensor.split(_slice_rows(tensor))


def _slice_rows(tensor: Tensor) -> int:
    return max(SLICE_FLOATS // max(tensor[:1].numel(), 1), 1) if _is_eager_cpu(tensor) else max(tensor.shape[0], 1)
