"""A batch, whatever its form: FuxiCTR's dict of columns, or the tuple of its LongCTR models.

Shape symbols: `B` rows, `L` length of a sequence of items.
"""

from collections.abc import Container, Mapping
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


def with_columns(batch: Columns | LongBatch, added: Columns) -> dict[str, Tensor] | LongBatch:
    """A batch of the same form with more columns, `B` rows each."""
    if isinstance(batch, Mapping):
        return {**batch, **added}
    rows, items, mask = batch
    return {**rows, **added}, items, mask


def only_columns(batch: Columns | LongBatch, names: Container[str]) -> dict[str, Tensor] | LongBatch:
    """A batch of the same form, in dicts of its own, without the columns that are not named."""
    if isinstance(batch, Mapping):
        return {name: column for name, column in batch.items() if name in names}
    rows, items, mask = batch
    return only_columns(rows, names), only_columns(items, names), mask


def rows_of(batch: Columns | LongBatch) -> int:
    """`B`, the number of rows."""
    return len(next(iter(batch.values()))) if isinstance(batch, Mapping) else len(batch[2])
