"""Placebos for field vectors: what a method gains with these, it does not gain from the words.

Shape symbols: `K` fields, `D_llm` width of the field vectors.
"""

import torch
from torch import Tensor

# Placebos that are made of the language model's own vectors.
OF_VECTORS = ("random", "shuffled")


def random_like(vectors: Tensor, seed: int) -> Tensor:
    """Gaussian rows with the norms of `vectors`, `[K, D_llm]`."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(vectors.shape, generator=generator)
    return drawn / drawn.norm(dim=-1, keepdim=True) * vectors.norm(dim=-1, keepdim=True)


def shuffled(vectors: Tensor, seed: int) -> Tensor:
    """The rows of `vectors` handed round over the fields: with K > 1 no field keeps its own, `[K, D_llm]`."""
    order = torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))
    result = torch.empty_like(vectors)
    result[order] = vectors[order.roll(1)]
    return result


def identity(num_fields: int) -> Tensor:
    """One-hot fields, `[K, K]`: all cosines are zero."""
    return torch.eye(num_fields)
