"""A loader for data that does not fit in memory: row groups of parquet, in shuffled windows, in FuxiCTR's form.

The rows of an epoch come window by window. A window is as many row groups as have about `WINDOW_ROWS` rows, drawn at
random from the whole split; within it the order of rows is random. Two windows at most are in memory.

Shape symbols: `B` rows of a batch.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from fuxictr.features import FeatureMap
from torch import Tensor

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.data.file_parts import as_array, readable
from fuxictr_llm.data.in_memory import InMemoryLoader, check_finite, check_names, data_files, narrow

WINDOW_ROWS = 2**20


class BlockLoader(InMemoryLoader):
    """Batches of the same form as `InMemoryLoader`'s, from parquet alone, and with `shuffle` in another order.

    The order is drawn from `seed` and the epoch, and an epoch can start at any batch.

    Raises:
        UserError: no parquet file, a declared column is missing in it, or a block that is read holds NaN or infinity.
    """

    def _open(self, feature_map: FeatureMap, data_path: str) -> None:
        """See which rows each block has."""
        self._path, parts = data_path, data_files(data_path)
        if parts[0].suffix != ".parquet":
            raise UserError(f"data_loader: blocks reads parquet, and {data_path!r} is {parts[0].suffix}; set memory")
        self._order = self._names(feature_map)
        check_names(parts, self._order)
        self.num_blocks = len(parts)
        self._blocks = [_Block(part, index) for part in parts for index in range(pq.read_metadata(part).num_row_groups)]
        counts = np.array([block.rows for block in self._blocks], np.int64)
        self._starts = np.concatenate([[0], np.cumsum(counts)])
        self.num_samples, self._slot_rows = int(self._starts[-1]), int(max(counts, default=0))
        self._window = max(WINDOW_ROWS // max(self._slot_rows, 1), 1)
        # A batch may reach from one window into the next: both have places.
        self._slot_of = np.full(len(self._blocks), -1, np.int64)
        self._in_slot = np.full(min(2 * self._window, len(self._blocks)), -1, np.int64)
        self._next_slot = 0
        self._held: dict[str, Tensor] = {}

    def _rows_of_batches(self) -> Iterator[slice | Tensor]:
        first, self._first = self._first * self.batch_size, 0
        generator = None
        if self.shuffle:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
            self.epoch += 1
        waiting: list[Tensor] = []
        for rows in self._windows(generator):
            skipped = min(first, len(rows))
            first -= skipped
            waiting.append(rows[skipped:])
            ready = torch.cat(waiting)
            whole = len(ready) // self.batch_size * self.batch_size
            if whole:  # or split gives an empty batch
                yield from ready[:whole].split(self.batch_size)
            waiting = [ready[whole:]]
        if waiting and len(waiting[0]):
            yield waiting[0]

    def _windows(self, generator: torch.Generator | None) -> Iterator[Tensor]:
        """The numbers of the rows of each window, in their order."""
        count = len(self._blocks)
        blocks = torch.arange(count) if generator is None else torch.randperm(count, generator=generator)
        for window in blocks.split(self._window):
            parts = [torch.arange(int(self._starts[block]), int(self._starts[block + 1])) for block in window.tolist()]
            rows = torch.cat(parts)
            yield rows if generator is None else rows[torch.randperm(len(rows), generator=generator)]

    def _columns(self, rows: slice | Tensor) -> dict[str, Tensor]:
        numbers = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows.numpy()
        blocks = np.searchsorted(self._starts, numbers, side="right") - 1
        wanted = np.unique(blocks)
        if len(wanted) > len(self._in_slot):  # a large batch of small blocks
            halves = [self._columns(half) for half in torch.from_numpy(numbers).tensor_split(2)]
            return {name: torch.cat([half[name] for half in halves]) for name in self._order}
        for block in wanted[self._slot_of[wanted] < 0]:
            self._load(int(block), wanted)
        places = torch.from_numpy(self._slot_of[blocks] * self._slot_rows + numbers - self._starts[blocks])
        batch = {name: self._held[name][places] for name in self._order}
        return {name: column.long() if _are_ids(column) else column for name, column in batch.items()}

    def _load(self, block: int, wanted: np.ndarray) -> None:
        """Read a block into the place of the oldest one that the batch does not want."""
        while self._in_slot[self._next_slot] in wanted:
            self._next_slot = (self._next_slot + 1) % len(self._in_slot)
        slot = self._next_slot
        if self._in_slot[slot] >= 0:
            self._slot_of[self._in_slot[slot]] = -1
        columns = self._blocks[block].read(self._order)
        check_finite(columns, self._path)
        for name, values in columns.items():
            if name not in self._held:
                shape = (len(self._in_slot) * self._slot_rows, *values.shape[1:])
                self._held[name] = torch.empty(shape, dtype=torch.from_numpy(values[:0]).dtype)
            held = torch.from_numpy(values)
            if held.dtype != self._held[name].dtype:  # a later block has larger numbers
                self._held[name] = self._held[name].to(torch.promote_types(held.dtype, self._held[name].dtype))
            self._held[name][slot * self._slot_rows :][: len(held)] = held
        self._in_slot[slot], self._slot_of[block] = block, slot
        self._next_slot = (slot + 1) % len(self._in_slot)


class _Block:
    """A row group of a file."""

    def __init__(self, path: Path, index: int):
        self._path, self._index = path, index
        with readable(path):
            self.rows = pq.read_metadata(path).row_group(index).num_rows

    def read(self, names: list[str]) -> dict[str, np.ndarray]:
        with readable(self._path), pq.ParquetFile(self._path) as file:
            table = file.read_row_group(self._index, columns=names)
        return {name: np.array(narrow(as_array(name, table.column(name), self._path))) for name in names}


def _are_ids(column: Tensor) -> bool:
    return column.dim() == 1 and column.dtype == torch.int32
