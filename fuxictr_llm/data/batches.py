"""A batch, whatever its form: FuxiCTR's dict of columns, or the tuple of its LongCTR models.

Shape symbols: `B` rows, `L` length of a sequence of items.
"""

from collections.abc import Mapping
from typing import TypeAlias

from torch import Tensor

Columns: TypeAlias = Mapping[str, Tensor]
# Columns of the rows; columns of the items, [B * (L + 1)], each row's L items of its history and then its target;
# which places of the history hold an item, [B, L].
LongBatch: TypeAlias = tuple[Columns, Columns, Tensor]


def columns_of(batch: Columns | LongBatch) -> dict[str, Tensor]:
    """Column -> tensor with `B` rows; of a tuple, the rows' columns and those of each row's target item."""
    if isinstance(batch, Mapping):
        return dict(batch)
    rows, items, mask = batch
    length = mask.shape[1]
    return {**rows, **{name: column[length :: length + 1] for name, column in items.items()}}


def rows_of(batch: Columns | LongBatch) -> int:
    """`B`, the number of rows."""
    return len(next(iter(batch.values()))) if isinstance(batch, Mapping) else len(batch[2])
