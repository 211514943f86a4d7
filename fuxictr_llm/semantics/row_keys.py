"""A 64-bit key of a row: the same for equal ids, on the CPU and on a GPU, from every loader.

Shape symbols: `B` rows, `U` units of text, `W` ids of a unit (a sequence has as many as it is long).
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor


class KeyCollision(Exception):
    """Different ids have the same key: another salt is needed."""


class RowKeys:
    """Multilinear hashing: the sum of all ids, each times a random odd number of its column and place, modulo 2^64.

    Args:
        units: the columns of each unit.
        numbers: those of them that are numeric.
        salt: gives other odd numbers.
    """

    def __init__(self, units: Sequence[Sequence[str]], numbers: Collection[str] = (), salt: int = 0):
        self.units, self.numbers, self.salt = [tuple(columns) for columns in units], frozenset(numbers), salt
        self._factors: dict[tuple[str, int, torch.device], Tensor] = {}

    def of_units(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """The key of each unit's ids, U times int64 `[B]`, on the batch's device."""
        return [sum(self._of_column(name, batch[name]) for name in columns) for columns in self.units]

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The key of the whole row, int64 `[B]`, on the batch's device."""
        return sum(self.of_units(batch))

    def ids_of(self, name: str, column: Tensor) -> Tensor:
        """int64 of the same shape: ids as they are, numbers by the bits of their float32."""
        if name not in self.numbers:
            return column.long()
        numbers = column.float()
        numbers = torch.where(numbers.isnan(), torch.nan, numbers) + 0.0  # one NaN, and no -0.0
        return numbers.view(torch.int32).long()

    def _of_column(self, name: str, column: Tensor) -> Tensor:
        ids = self.ids_of(name, column)
        width = ids.shape[1] if ids.ndim == 2 else 1
        known = (name, width, ids.device)
        if known not in self._factors:
            self._factors[known] = torch.tensor(_factors(self.salt, name, width), device=ids.device)
        factors = self._factors[known]
        return (ids * factors).sum(dim=1) if ids.ndim == 2 else ids * factors


def _factors(salt: int, name: str, width: int) -> list[int]:
    draw = hashlib.shake_128(f"{salt}:{name}".encode()).digest(8 * width)
    return (np.frombuffer(draw, dtype="<i8") | 1).tolist()


class KeyLookup:
    """Where keys are among sorted ones. The leading bits of a key say nearly where: four times faster than bisection.

    Args:
        keys: int64 `[N]`, sorted; hashes, so that they are spread evenly.
    """

    def __init__(self, keys: np.ndarray):
        bits = len(keys).bit_length() + 1
        self._keys, self._shift, self._half = keys, 64 - bits, 1 << (bits - 1)
        firsts = np.arange(-self._half, self._half) << self._shift
        self._starts = np.minimum(np.searchsorted(keys, firsts), max(len(keys) - 1, 0)).astype(np.int32)

    def __call__(self, keys: np.ndarray) -> np.ndarray:
        """The position `[B]` of each key `[B]`, -1 for one that is not there."""
        if not len(self._keys):
            return np.full(len(keys), -1)
        places = self._starts[(keys >> self._shift) + self._half].astype(np.int64)
        behind = np.flatnonzero(self._keys[places] < keys)
        while len(behind := behind[places[behind] < len(self._keys) - 1]):
            places[behind] += 1
            behind = behind[self._keys[places[behind]] < keys[behind]]
        return np.where(self._keys[places] == keys, places, -1)


class Distinct:
    """The distinct keys of many rows, and what belongs to each; memory for those alone.

    Args:
        width: W, how many numbers belong to a key.
        dtype: theirs.
    """

    def __init__(self, width: int, dtype: type):
        self._known = np.empty(0, np.int64), np.empty((0, width), dtype)
        self._new: list[tuple[np.ndarray, np.ndarray]] = []

    def add(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Rows with their keys `[n]` and values `[n, W]`.

        Raises:
            KeyCollision: rows with the same key have different values.
        """
        self._new.append(_first_of_each(keys, values))
        if sum(len(new) for new, _ in self._new) > len(self._known[0]):
            self.all()

    def all(self) -> tuple[np.ndarray, np.ndarray]:
        """Sorted keys `[N]`, and their values `[N, W]`.

        Raises:
            KeyCollision: as `add`.
        """
        if self._new:
            keys, values = zip(self._known, *self._new, strict=True)
            self._known, self._new = _first_of_each(np.concatenate(keys), np.concatenate(values)), []
        return self._known


def _first_of_each(keys: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    unique, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    kept = values[first]
    if not np.array_equal(kept[inverse], values):
        raise KeyCollision
    return unique, kept
