"""Vectors of texts, each dimension at the same scale; fitted on texts of train rows alone.

Shape symbols: `n` rows, `D_llm` width of the language model.
"""

import torch
from torch import Tensor

from fuxictr_llm.llm.vectors.store import VectorStore

# Rows on which is fitted (scaling, a PCA, alignment), at most; a random sample where there are more.
MOST_FITTED = 50_000


class Standardized:
    """A unit's vectors, each dimension with mean 0 and standard deviation 1 over the texts of train rows.

    Mean-pooled hidden states are crowded around one direction, from which a head would have to learn its way first. A
    row without a text of the unit has zeros.

    Args:
        store: the unit's vectors.
        fitted: positions of texts of train rows, on which mean and deviation are taken.
        empty: the position of the empty text, or None.
    """

    def __init__(self, store: VectorStore, fitted: Tensor, empty: int | None = None):
        self.store, self.dim, self.empty = store, store.dim, empty
        self.fitted = fitted[fitted != empty] if empty is not None else fitted
        known = store.gather(self.fitted)
        deviation, self.mean = torch.std_mean(known, dim=0, correction=0)
        # What is constant but for rounding says nothing.
        self.scale = torch.where(deviation > 1e-6 * (1 + self.mean.abs()), 1 / deviation, 0)

    def gather(self, positions: Tensor) -> Tensor:
        """float32 `[n, D_llm]`."""
        vectors = (self.store.gather(positions) - self.mean).mul_(self.scale)
        if self.empty is not None:
            vectors[positions.cpu() == self.empty] = 0
        return vectors


def some_of(rows: Tensor) -> Tensor:
    """The rows, or a random sample of them to fit on; that of equally many is the same."""
    if len(rows) > MOST_FITTED:
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:MOST_FITTED]]
    return rows
