"""Histories as vectors, for the gain network: what a user did before, and how like it the row's own item is.

Shape symbols: `P` distinct rows with a history, `D_s` components of a unit.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.llm.texts.histories import Histories
from fuxictr_llm.llm.vectors.standardized import some_of

from .vectors import RawVectors, Reduced


def of_histories(histories: Histories, raw: RawVectors, width: int) -> Callable[[Tensor], Tensor]:
    """The mean of a history's items on `width` components, and its cosine with the row's own item: `[P, D_s + 1]`.

    Each column has mean 0 and standard deviation 1 over train rows. A row without a history has zeros.

    Raises:
        UserError: no train row has a history.
    """
    items = Reduced(raw.stores[histories.unit], width)

    def told(rows: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors, and which rows have a history."""
        texts = histories.items_of(rows)
        distinct, places = torch.cat([texts, histories.own[rows, None]], dim=1).unique(return_inverse=True)
        vectors = functional.normalize(items.gather(distinct.clamp(min=0)), dim=1)
        vectors[distinct < 0] = 0
        counts = (texts >= 0).sum(dim=1, keepdim=True)
        # A history has few of the distinct texts: their sum is a sparse matrix times the vectors.
        sums = functional.embedding_bag(places[:, :-1], vectors, mode="sum")
        mean = sums / counts.clamp(min=1)
        cosine = functional.cosine_similarity(mean, vectors[places[:, -1]], dim=1)
        return torch.cat([mean, cosine[:, None]], dim=1), counts[:, 0] > 0

    fitted, known = told(some_of(histories.train_rows.nonzero().squeeze(-1)))
    if not known.any():
        raise UserError(
            "text_history: no train row has a history; name another column, label or rows (past or folds), or leave "
            "text_history out"
        )
    deviation, mean = torch.std_mean(fitted[known], dim=0, correction=0)
    scale = torch.where(deviation > 1e-6, 1 / deviation, 0)

    def of_rows(rows: Tensor) -> Tensor:
        vectors, known = told(rows)
        return torch.where(known[:, None], (vectors - mean) * scale, 0)

    return of_rows
