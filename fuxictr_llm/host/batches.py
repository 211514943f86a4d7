"""Batches of both forms: FuxiCTR's dict of columns, and the tuple that its LongCTR models take.

Shape symbols: `B` rows, `L` length of a sequence of items.
"""

from collections.abc import Container, Mapping
from typing import Any, TypeAlias

import torch
from fuxictr.features import FeatureMap
from torch import Tensor

AFFECTS_VECTORS = False  # see common/code_digest.py

Columns: TypeAlias = Mapping[str, Tensor]
# The columns of the rows; the columns of the items [B * (L + 1)]: each row's L items of its history, then its target;
# and the mask [B, L] of the places in the history that hold an item.
LongBatch: TypeAlias = tuple[Columns, Columns, Tensor]
Batch: TypeAlias = dict[str, Tensor] | LongBatch


def columns_of(batch: Columns | LongBatch) -> dict[str, Tensor]:
    """Column -> tensor with `B` rows; of a LongBatch, the columns of the rows and of their target items."""
    if isinstance(batch, Mapping):
        return dict(batch)
    rows, items, mask = batch
    length = mask.shape[1]
    return {**rows, **{name: column[length :: length + 1] for name, column in items.items()}}


def with_columns(batch: Columns | LongBatch, added: Columns) -> Batch:
    """A batch of the same form with more columns, `B` rows each."""
    if isinstance(batch, Mapping):
        return {**batch, **added}
    rows, items, mask = batch
    return {**rows, **added}, items, mask


def only_columns(batch: Columns | LongBatch, names: Container[str]) -> Batch:
    """A batch of the same form, in new dicts, with the named columns alone."""
    if isinstance(batch, Mapping):
        return _only(batch, names)
    rows, items, mask = batch
    return _only(rows, names), _only(items, names), mask


def _only(columns: Columns, names: Container[str]) -> dict[str, Tensor]:
    return {name: column for name, column in columns.items() if name in names}


def rows_of(batch: Columns | LongBatch) -> int:
    """`B`, the number of rows."""
    return len(next(iter(batch.values()))) if isinstance(batch, Mapping) else len(batch[2])


def synthetic_batch(feature_map: FeatureMap, rows: int = 4) -> dict[str, Tensor]:
    """Random ids and values as FuxiCTR's loaders give them; torch's own random state is not used."""
    generator = torch.Generator().manual_seed(0)
    batch = {name: _column(spec, rows, generator) for name, spec in feature_map.features.items()}
    for label in feature_map.labels:
        batch[label] = torch.randint(0, 2, (rows,), generator=generator).double()
    return batch


def synthetic_long_batch(feature_map: FeatureMap, rows: int = 4, length: int = 3) -> LongBatch:
    """A `synthetic_batch` in the form of FuxiCTR's LongCTR loader."""
    generator = torch.Generator().manual_seed(0)
    batch = synthetic_batch(feature_map, rows)
    items = {name: spec for name, spec in feature_map.features.items() if spec.get("source") == "item"}
    places = rows * (length + 1)
    columns = {name: _column(spec, places, generator) for name, spec in items.items()}
    return {name: batch[name] for name in batch if name not in items}, columns, torch.ones(rows, length)


def _column(spec: Mapping[str, Any], rows: int, generator: torch.Generator) -> Tensor:
    kind = spec["type"]
    if kind in ("categorical", "meta"):
        return torch.randint(0, max(spec.get("vocab_size", 2), 1), (rows,), generator=generator)
    if kind == "sequence":
        shape = (rows, spec["max_len"])
        return torch.randint(0, spec["vocab_size"], shape, generator=generator, dtype=torch.int32)
    return torch.rand((rows, spec["pretrain_dim"]) if kind == "embedding" else (rows,), generator=generator)
