"""Values at given ranks of the columns of a file: exact, sorted in memory or, where too many, found in four passes."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

IN_MEMORY = 2**26  # rows, of 8 bytes
PART_ROWS = 2**20
DIGIT = 16  # bits of a value that a pass decides
SIGN = np.uint64(1 << 63)


class Column:
    """The finite numbers of a column of a parquet file.

    Args:
        path: of the file.
        name: of the column, in float64.
    """

    def __init__(self, path: Path, name: str):
        self._path, self._name = path, name

    def count(self, below: float = np.inf) -> int:
        """How many there are, or are less than a number."""
        if self._sorted is not None:
            return int(np.searchsorted(self._sorted, below))
        return sum(int((values < below).sum()) for values in self._parts())

    def at_ranks(self, ranks: Sequence[int] | np.ndarray) -> list[float]:
        """The values at those places of the sorted column, counted from 0."""
        if self._sorted is not None:
            return self._sorted[ranks].tolist()
        # As whole numbers of the same order they are found digit by digit, the first digit first.
        found, left = np.zeros(len(ranks), np.uint64), np.array(ranks, np.int64)
        for shift in range(64 - DIGIT, -1, -DIGIT):
            prefixes, rows = np.unique(found, return_inverse=True)
            ends = self._digits(prefixes, shift).cumsum(axis=1)
            for index, row in enumerate(rows):
                digit = int(np.searchsorted(ends[row], left[index], side="right"))
                left[index] -= ends[row][digit - 1] if digit else 0
                found[index] = (found[index] << np.uint64(DIGIT)) | np.uint64(digit)
        return _values(found).tolist()

    @cached_property
    def _sorted(self) -> np.ndarray | None:
        """All values, where they may be in memory."""
        with pq.ParquetFile(self._path) as file:
            if file.metadata.num_rows > IN_MEMORY:
                return None
        values = np.concatenate([np.empty(0), *self._parts()])
        values.sort()
        return values

    def _digits(self, prefixes: np.ndarray, shift: int) -> np.ndarray:
        """How often each digit at `shift` comes after each of the prefixes, `[len(prefixes), 2 ** DIGIT]`."""
        size = 2**DIGIT
        counts = np.zeros(len(prefixes) * size, np.int64)
        for values in self._parts():
            keys = _keys(values) >> np.uint64(shift)
            before = keys >> np.uint64(DIGIT)
            places = np.searchsorted(prefixes, before).clip(max=len(prefixes) - 1)
            wanted = prefixes[places] == before
            digits = (keys[wanted] & np.uint64(size - 1)).astype(np.int64)
            counts += np.bincount(places[wanted] * size + digits, minlength=len(counts))
        return counts.reshape(len(prefixes), size)

    def _parts(self) -> Iterator[np.ndarray]:
        with pq.ParquetFile(self._path) as file:
            for part in file.iter_batches(PART_ROWS, columns=[self._name]):
                values = part.column(0).to_numpy(zero_copy_only=False)
                yield values[np.isfinite(values)] + 0.0  # no -0.0


def _keys(values: np.ndarray) -> np.ndarray:
    bits = values.view(np.uint64)
    return np.where(bits & SIGN, ~bits, bits | SIGN)


def _values(keys: np.ndarray) -> np.ndarray:
    return np.where(keys & SIGN, keys & ~SIGN, ~keys).view(np.float64)
