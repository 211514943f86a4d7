"""What the gain network gets of a row: h, or s reduced, for every distinct row, in a store; and placebos of both.

Shape symbols: `R` distinct rows, `U` units of text a row, `N` texts of a unit, `D_llm` width of the language model,
`D_s` components of a unit, `D_h` width of h.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from scipy.linalg import orthogonal_procrustes
from torch import Tensor

from fuxictr_llm.common.code_digest import digest_of_code
from fuxictr_llm.common.files import merged
from fuxictr_llm.host.batches import Batch, columns_of, with_columns
from fuxictr_llm.llm.texts.folds import mixed_fold
from fuxictr_llm.llm.texts.row_texts import RowIndex
from fuxictr_llm.llm.threads import in_one_thread
from fuxictr_llm.llm.vectors.standardized import Standardized, some_of
from fuxictr_llm.llm.vectors.store import VectorStore, find_or_write, random_like

from .head import VECTOR, TextHead, text_columns

KIND = "row_vectors"
PLACEBOS = "placebo_vectors"
# Raise it when the same settings would give other vectors.
VERSION = 3


class Indexed(Protocol):
    """Distinct rows; a batch's rows are found by its own columns."""

    def row_of(self, batch: Mapping[str, Tensor]) -> Tensor: ...


@dataclass(frozen=True)
class RowVectors:
    """Vectors of a batch's rows, looked up by the batch's own columns.

    Attributes:
        index: the distinct rows.
        width: of a vector.
        of_rows: rows of the index, `[n]`, -> their vectors, `[n, width]`, float32.
    """

    index: Indexed
    width: int
    of_rows: Callable[[Tensor], Tensor]

    def of_batch(self, batch: Batch) -> Tensor:
        """`[B, width]`."""
        return self.of_rows(self.index.row_of(columns_of(batch)))

    def __call__(self, batch: Batch) -> Batch:
        """The batch with the column `VECTOR`."""
        return with_columns(batch, {VECTOR: self.of_batch(batch)})


class SideBySide:
    """Vectors of several kinds of a batch's rows as one."""

    def __init__(self, *parts: RowVectors):
        self.parts, self.width = parts, sum(part.width for part in parts)

    def __call__(self, batch: Batch) -> Batch:
        """The batch with the column `VECTOR`."""
        return with_columns(batch, {VECTOR: torch.cat([part.of_batch(batch) for part in self.parts], dim=1)})


def placebo_of(stores: Sequence[VectorStore], kind: str, seed: int) -> list[VectorStore]:
    """Stores with other vectors in the place of each text's: `noise`, Gaussian ones of the same norms, or `shuffled`.

    The control comes before all that is learnt from the vectors, so that it has every way of learning that they have.
    """

    def placebo(unit: int, store: VectorStore) -> VectorStore:
        order = torch.randperm(len(store), generator=torch.Generator().manual_seed(_mixed(seed, unit)))

        def make(start: int, stop: int) -> np.ndarray:
            if kind == "shuffled":
                return store.gather(order[start:stop]).numpy()
            return random_like(store.gather(torch.arange(start, stop)), _mixed(seed, unit, start)).nan_to_num().numpy()

        made_from = {"vectors": store.sha256, "placebo": kind, "seed": seed, "unit": unit, "version": VERSION}
        made_from["code"] = digest_of_code([__name__])
        return find_or_write(PLACEBOS, made_from, len(store), make)

    return [placebo(unit, store) for unit, store in enumerate(stores)]


def _mixed(*numbers: int) -> int:
    """A seed that no other numbers give: units that shared one would have the same directions in the same places."""
    return int(np.random.SeedSequence([number % 2**64 for number in numbers]).generate_state(1, np.uint64)[0] >> 1)


class Reduced:
    """A unit's vectors on their first principal components, at a root mean square of 1; fitted on texts of train rows.

    Components that there are not (fewer texts or dimensions than `width`) are zeros; so is a row without a text.

    Args:
        unit: the vectors.
        width: D_s.
    """

    def __init__(self, unit: Standardized, width: int):
        from sklearn.decomposition import PCA

        self.unit, self.dim = unit, width
        vectors = unit.gather(some_of(unit.fitted)).numpy()
        self._pca, self.scale = None, 0.0
        if components := min(width, len(vectors) - 1, vectors.shape[1]):
            self._pca = PCA(components, svd_solver="covariance_eigh").fit(vectors)
            size = float(np.sqrt(np.mean(np.square(self._pca.transform(vectors)))))
            self.scale = 1 / size if size > 0 else 0.0

    def gather(self, positions: Tensor) -> Tensor:
        """float32 `[n, D_s]`."""
        distinct, places = positions.long().unique(return_inverse=True)
        vectors = torch.zeros(len(distinct), self.dim)
        if self._pca is not None:
            reduced = self._pca.transform(self.unit.gather(distinct).numpy()) * self.scale
            vectors[:, : reduced.shape[1]] = torch.from_numpy(reduced)
        if self.unit.empty is not None:
            vectors[distinct == self.unit.empty] = 0
        return vectors[places]


@dataclass(frozen=True)
class RawVectors(RowVectors):
    """s: the vectors of a row's units side by side, `width` U * D_llm; a batch gets the distinct texts of its rows."""

    index: RowIndex
    stores: Sequence[Standardized]

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The batch's columns with the `text_columns` of all units."""
        columns, added = columns_of(batch), dict[str, Tensor]()
        positions = self.index.positions[self.index.row_of(columns)]
        for unit, store in enumerate(self.stores):
            distinct, places = positions[:, unit].unique(return_inverse=True)
            added |= dict(zip(text_columns(unit), (store.gather(distinct), places), strict=True))
        return {**columns, **added}


def raw_vectors(index: RowIndex, stores: Sequence[VectorStore]) -> RawVectors:
    """s of rows, standardized."""
    rows = _sample(index)
    units = [
        Standardized(store, index.positions[rows, unit].long().unique(), texts.empty)
        for unit, (store, texts) in enumerate(zip(stores, index.units, strict=True))
    ]

    def of_rows(rows: Tensor) -> Tensor:
        positions = index.positions[rows].long()
        return torch.cat([store.gather(positions[:, unit]) for unit, store in enumerate(units)], dim=1)

    return RawVectors(index, sum(store.dim for store in units), of_rows, units)


def stored(made_from: dict[str, Any], rows: int, fit: Callable[[], Callable[[Tensor], Tensor]]) -> VectorStore:
    """The vectors of all distinct rows in a store, from there where they are there.

    Args:
        rows: how many.
        fit: gives what makes vectors of rows; asked once, and only where some have to be made.
    """
    fitted = functools.cache(fit)

    def make(start: int, stop: int) -> np.ndarray:
        with in_one_thread():
            return fitted()(torch.arange(start, stop)).numpy()

    made_from = merged(made_from, {"version": VERSION, "code": digest_of_code([__name__])})
    return find_or_write(KIND, made_from, rows, make)


def in_store(index: Indexed, store: VectorStore) -> RowVectors:
    """The vectors of a store of R rows."""
    return RowVectors(index, store.dim, store.gather)


def of_s(raw: RawVectors, width: int) -> Callable[[Tensor], Tensor]:
    """s of rows, each unit on `width` components: `[R, U * D_s]`."""
    units = [Reduced(unit, width) for unit in raw.stores]

    def of_rows(rows: Tensor) -> Tensor:
        positions = raw.index.positions[rows]
        return torch.cat([unit.gather(positions[:, number]) for number, unit in enumerate(units)], dim=1)

    return of_rows


def of_head(head: TextHead, raw: RowVectors) -> Callable[[Tensor], Tensor]:
    """h of rows, from one head."""

    @torch.inference_mode()
    def of_rows(rows: Tensor) -> Tensor:
        return head.h(raw.of_rows(rows).to(head.device)).float().cpu()

    return of_rows


def of_heads(reference: TextHead, heads: Sequence[TextHead], raw: RawVectors) -> Callable[[Tensor], Tensor]:
    """h of rows, each from the head of its fold, turned into the reference's space.

    Two heads that were trained apart say the same in different directions. The rotation and shift that bring their h
    closest to the reference's, over train rows, undo that (orthogonal Procrustes).
    """
    fitted = _sample(raw.index)
    target = of_head(reference, raw)(fitted)
    turns = []
    for head in heads:
        own = of_head(head, raw)(fitted)
        turn, _ = orthogonal_procrustes((own - own.mean(dim=0)).numpy(), (target - target.mean(dim=0)).numpy())
        turns.append((own.mean(dim=0), torch.from_numpy(turn)))

    def of_rows(rows: Tensor) -> Tensor:
        folds = fold_of(raw.index.positions[rows], len(heads))
        vectors = torch.empty(len(rows), target.shape[1])
        for fold, (head, (mean, turn)) in enumerate(zip(heads, turns, strict=True)):
            chosen = folds == fold
            vectors[chosen] = (of_head(head, raw)(rows[chosen]) - mean) @ turn + target.mean(dim=0)
        return vectors

    return of_rows


def fold_of(positions: Tensor, folds: int) -> Tensor:
    """The fold of each row, by the positions of its texts: rows with equal texts share one. `[n, U] -> [n]`."""
    return mixed_fold(positions.unbind(dim=1), folds)


def _sample(index: RowIndex) -> Tensor:
    """Train rows, all or a random sample of them; that of the same rows is the same."""
    return some_of(index.train_rows.nonzero().squeeze(-1))
