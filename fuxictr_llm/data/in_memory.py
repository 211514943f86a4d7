"""A seeded in-memory loader in FuxiCTR's form: the same seed gives the same batches, in another order each epoch.

Shape symbols: `B` rows of a batch.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap
from torch import Tensor

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.progress import Progress
from fuxictr_llm.data.file_parts import NpzPart, ParquetPart
from fuxictr_llm.data.raw_checks import first_not_finite
from fuxictr_llm.data.shares import share_of
from fuxictr_llm.host.batches import LongBatch


class InMemoryLoader:
    """Batches from a parquet or npz file, or a folder of them, held in memory; ids as int32.

    Takes the place of FuxiCTR's loaders through `RankDataLoader(..., data_loader=InMemoryLoader)`. A batch maps
    column to tensor, as FuxiCTR's: ids int64 `[B]`, sequences int32 `[B, L]`, values and labels float.

    Args:
        feature_map: names the columns and labels.
        data_path: the file, or the folder of its parts.
        split: kept for FuxiCTR's signature; the order depends on `shuffle` alone.
        batch_size: rows a batch; the last one may have fewer.
        shuffle: a new order every epoch, drawn from `seed` and the epoch.
        seed: of the shuffling alone: other random numbers are untouched by it.

    Raises:
        UserError: no file, a declared column is missing in it, or holds NaN or infinity.
    """

    starts_anywhere = True

    def __init__(
        self,
        feature_map: FeatureMap,
        data_path: str,
        split: str = "train",
        batch_size: int = 32,
        shuffle: bool = False,
        seed: int = 0,
        **_: Any,
    ):
        self.batch_size, self.shuffle, self.seed, self.epoch = batch_size, shuffle, seed, 0
        self._first = 0
        self._open(feature_map, data_path)

    def _open(self, feature_map: FeatureMap, data_path: str) -> None:
        """Read all rows."""
        parts = data_files(data_path)
        self.num_blocks = len(parts)
        columns = read_columns(parts, self._names(feature_map))
        check_finite(columns, data_path)
        # Some of FuxiCTR's models lay the columns of a batch side by side in the order in which they come.
        self._order = [*columns]
        self.num_samples = len(next(iter(columns.values())))
        narrow = [name for name, values in columns.items() if values.ndim == 1 and values.dtype == np.int32]
        # One gather for all ids instead of one a column.
        self._id_names = narrow
        ids = torch.empty(self.num_samples, len(narrow), dtype=torch.int32)
        for index, name in enumerate(narrow):
            ids[:, index] = torch.from_numpy(columns.pop(name))
        self._ids = ids if narrow else None
        self._others = {name: torch.from_numpy(values) for name, values in columns.items()}

    def _names(self, feature_map: FeatureMap) -> list[str]:
        """The columns to read."""
        return [*feature_map.features, *feature_map.labels]

    def __len__(self) -> int:
        return -(-self.num_samples // self.batch_size)

    def start_at(self, epoch: int, batch: int) -> None:
        """Make the next iteration one of this epoch, from this batch on; both are counted from 0."""
        self.epoch, self._first = epoch, batch

    def __iter__(self) -> Iterator[dict[str, Tensor] | LongBatch]:
        for rows in self._rows_of_batches():
            yield self._batch(rows)

    def shares(self, index: int, count: int) -> Iterator[dict[str, Tensor] | LongBatch]:
        """As iterating, but of each batch the share of process `index` of `count` alone (see data/shares.py)."""
        for rows in self._rows_of_batches():
            if isinstance(rows, Tensor):
                yield self._batch(rows[share_of(len(rows), index, count)])
            else:
                share = share_of(rows.stop - rows.start, index, count)
                yield self._batch(slice(rows.start + share.start, rows.start + share.stop))

    def batches_in_turn(self, index: int, count: int) -> Iterator[dict[str, Tensor] | LongBatch]:
        """As iterating, but the batches `index`, `index + count`, ... alone."""
        for rows in islice(self._rows_of_batches(), index, None, count):
            yield self._batch(rows)

    def _rows_of_batches(self) -> Iterator[slice | Tensor]:
        first, self._first = self._first, 0
        order = None
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            order = torch.randperm(self.num_samples, generator=generator)
            self.epoch += 1
        for start in range(first * self.batch_size, self.num_samples, self.batch_size):
            rows = slice(start, min(start + self.batch_size, self.num_samples))
            yield rows if order is None else order[rows]

    def _batch(self, rows: slice | Tensor) -> dict[str, Tensor] | LongBatch:
        return self._columns(rows)

    def _columns(self, rows: slice | Tensor) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = {}
        if self._ids is not None:
            ids = self._ids[rows].long()
            batch = dict(zip(self._id_names, ids.unbind(dim=1), strict=True))
        batch |= {name: column[rows] for name, column in self._others.items()}
        return {name: batch[name] for name in self._order}


def starts_anywhere(rows: Any) -> bool:
    """Whether a loader can start within an epoch, at the batch that would come next (`start_at`)."""
    return getattr(rows, "starts_anywhere", False)


def check_finite(columns: Mapping[str, np.ndarray], path: str) -> None:
    """Check that no number is NaN or infinite.

    Raises:
        UserError: a column of built data holds a number with which every prediction is NaN.
    """
    for name, values in columns.items():
        row = first_not_finite(values)
        if row is not None:
            raise UserError(
                f"column {name!r} of built data {path!r} holds {values[row]} in row {row + 1}, which no model can "
                "learn from; correct the data that it was built from, and build it again"
            )


def data_files(path: str) -> list[Path]:
    """The parquet or npz files behind a path as FuxiCTR writes it: a file, one without its suffix, or a folder.

    Raises:
        UserError: there is none.
    """
    for candidate in (Path(path), Path(f"{path}.parquet"), Path(f"{path}.npz")):
        if candidate.is_file():
            return [candidate]
    parts = sorted(Path(path).glob("*.parquet")) or sorted(Path(path).glob("*.npz"))
    if not parts:
        raise UserError(f"built data {path!r} is missing")
    return parts


def read_slices(path: str, names: list[str], rows: int) -> Iterator[dict[str, np.ndarray]]:
    """Some columns of a split, at most `rows` rows at a time, in order.

    Raises:
        UserError: no file, or a column is missing in it.
    """
    for reader in _readers(data_files(path), names):
        yield from reader.slices(names, rows)


def count_rows(path: str) -> int:
    """The rows of a split.

    Raises:
        UserError: there is no file, or it is damaged.
    """
    return sum(reader.rows for reader in _readers(data_files(path), []))


def column_names(path: Path) -> list[str]:
    """The columns of a parquet or npz file.

    Raises:
        UserError: no such file, or it is damaged.
    """
    return list(_readers([path], [])[0].names)


def read_columns(parts: list[Path], names: list[str]) -> dict[str, np.ndarray]:
    """Whole columns of parquet or npz files, each narrowed before the next is read: little is in memory twice.

    Raises:
        UserError: a column is missing in a file, or it is damaged.
    """
    readers = _readers(parts, names)
    with Progress(f"reading {parts[0].name}", len(names), "columns") as progress:
        columns = {}
        for name in names:
            columns[name] = np.concatenate([narrow(reader.read(name)) for reader in readers])
            progress.update(1)
    return columns


def check_names(parts: list[Path], names: list[str]) -> None:
    """Check that each file has these columns.

    Raises:
        UserError: it lacks one, or is damaged.
    """
    _readers(parts, names)


def _readers(parts: list[Path], names: list[str]) -> list[Any]:
    readers = [NpzPart(part) if part.suffix == ".npz" else ParquetPart(part) for part in parts]
    for reader in readers:
        missing = [name for name in names if name not in reader.names]
        if missing:
            raise UserError(f"{str(reader.path)!r} lacks the columns {missing} that the feature map has")
    return readers


def narrow(values: np.ndarray) -> np.ndarray:
    """int32 instead of int64 where every value fits."""
    fits = values.dtype.kind in "iu" and (not values.size or max(values.max(), -values.min()) < 2**31)
    return values.astype(np.int32) if fits else np.ascontiguousarray(values)
