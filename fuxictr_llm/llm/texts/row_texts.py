"""Rows to texts: which units of text a row has, and the distinct texts of each.

Shape symbols: `B` rows of a batch, `R` distinct rows of all splits, `U` units, `N` distinct texts of a unit, `W` ids of
a unit's columns.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.progress import Progress
from fuxictr_llm.common.runs import Run
from fuxictr_llm.config.language_models import RowTextsConfig
from fuxictr_llm.data import SPLITS
from fuxictr_llm.data.in_memory import count_rows, read_slices
from fuxictr_llm.llm.texts.sentences import Sentence
from fuxictr_llm.llm.texts.units import (
    Distinct,
    EntityTexts,
    KeyCollision,
    KeyLookup,
    RowKeys,
    UnitPlan,
    plan_units,
    sum_of,
)

CHUNK = 100_000
SALTS = 4


class UnitTexts(Sequence[str]):
    """The N distinct texts of a unit, in the order of their digests; each is made when it is asked for.

    Attributes:
        name: of the unit, an entity or `row`.
        fields: the columns whose ids a text depends on.
        ids: int32 `[N, W]`, ids of these columns that have the text; sequences lie flat.
        sha256: digest of all texts, in order.
        empty: the position of the empty text, or None.
    """

    def __init__(self, name: str, sentences: Sequence[Sentence], widths: Mapping[str, int], ids: np.ndarray):
        self.name, self.fields, self.ids = name, tuple(widths), ids
        ends = dict(zip(widths, np.cumsum(list(widths.values())).tolist(), strict=True))
        self._sentences = [
            (sentence, slice(ends[sentence.column] - widths[sentence.column], ends[sentence.column]))
            for sentence in sentences
        ]
        self.sha256 = ""
        self.empty: int | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: Any) -> Any:
        if isinstance(rows, slice):
            return [self._text(ids) for ids in self.ids[rows]]
        return self._text(self.ids[rows])

    def keep_distinct(self) -> np.ndarray:
        """Drop all but one of equal texts; the new position of every text that there was, int32."""
        digests = np.concatenate([np.empty(0, "S16"), *self._digests()])
        unique, first, position = np.unique(digests, return_index=True, return_inverse=True)
        self.ids, self.sha256 = self.ids[first], sha256_of(unique)
        empty = np.flatnonzero(unique == digests_of([""])[0])
        self.empty = int(empty[0]) if len(empty) else None
        return position.astype(np.int32)

    def _digests(self) -> Iterator[np.ndarray]:
        with Progress(f"distinct texts of unit {self.name}", len(self), "texts") as progress:
            for start in range(0, len(self), CHUNK):
                yield digests_of(self[start : start + CHUNK])
                progress.update(min(CHUNK, len(self) - start))

    def _text(self, ids: np.ndarray) -> str:
        parts = [sentence.text_of(ids[columns]) for sentence, columns in self._sentences]
        return " ".join(part for part in parts if part)


def digests_of(texts: Sequence[str]) -> np.ndarray:
    """16 bytes a text, `[N]`."""
    return np.array([hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts], dtype="S16")


def sha256_of(digests: np.ndarray) -> str:
    """One digest of the `digests_of` texts."""
    return hashlib.sha256(digests.tobytes()).hexdigest()


def sha256_of_texts(texts: Sequence[str]) -> str:
    """One digest of texts, in their order; those of a unit know theirs."""
    return texts.sha256 if isinstance(texts, UnitTexts) else sha256_of(digests_of(texts))


@dataclass(frozen=True, eq=False)
class RowIndex:
    """Which texts a row has. A row is known by a 64-bit key of the ids of the fields that appear in its texts.

    Attributes:
        units: the U units of text.
        row_keys: how keys are made.
        keys: int64 `[R]`, sorted.
        positions: int32 `[R, U]`, into the units' texts.
        train_rows: bool `[R]`, whether the row occurs in the train split.
    """

    units: tuple[UnitTexts, ...]
    row_keys: RowKeys
    keys: Tensor
    positions: Tensor
    train_rows: Tensor

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def sha256(self) -> str:
        """Digest of the texts and of which row has which."""
        arrays = [self.keys, self.positions, self.train_rows]
        content = [hashlib.sha256(array.numpy().tobytes()).hexdigest() for array in arrays]
        return hashlib.sha256("".join([*content, *(unit.sha256 for unit in self.units)]).encode()).hexdigest()

    @cached_property
    def _lookup(self) -> KeyLookup:
        return KeyLookup(self.keys.numpy())

    def key_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        """int64 `[B]`, on the batch's device."""
        return self.row_keys(batch)

    def row_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        """int64 `[B]` on the CPU, where vectors are looked up: positions in `keys`.

        Raises:
            UserError: a row has ids that no row of the data set had when the index was made.
        """
        return places_in(self._lookup, self.key_of(batch))


def places_in(lookup: KeyLookup, keys: Tensor) -> Tensor:
    """int64 `[B]` on the CPU: where the keys are.

    Raises:
        UserError: one is not there.
    """
    rows = torch.from_numpy(lookup(keys.cpu().numpy()))
    if (missing := int((rows < 0).sum())) > 0:
        raise UserError(
            f"{missing} of {len(rows)} rows of a batch are not in the index of texts: the built data changed since "
            "it was read; start the run again"
        )
    return rows


def index_rows(config: RowTextsConfig, run: Run) -> RowIndex:
    """The index of all distinct rows of the splits; their labels are not read.

    Raises:
        UserError: no column can be put into words, a named column or side table is not there, or files are damaged.
    """
    plan = plan_units(config, run)
    numbers = [name for name, spec in run.feature_map.features.items() if spec["type"] == "numeric"]
    for salt in range(SALTS):
        row_keys = RowKeys([unit.columns for unit in plan], numbers, salt)
        try:
            index = _index(plan, row_keys, run)
        except KeyCollision:
            logging.warning("different rows have the same key: keys are made anew")
            continue
        _warn_of_empty(index)
        return index
    raise UserError(
        f"different rows of data set {run.params['dataset_id']!r} have the same 64-bit keys, whatever the salt"
    )


def _index(plan: Sequence[UnitPlan], row_keys: RowKeys, run: Run) -> RowIndex:
    entities = EntityTexts(plan, run)
    read = list(dict.fromkeys(name for unit in plan for name in unit.columns))
    columns = list(dict.fromkeys([*read, *entities.columns.values()]))
    slices_of = reader_of(run)
    rows = Distinct(len(plan), np.int64)
    units: dict[str, Distinct] = {}
    widths: dict[str, int] = {}
    train_keys = np.empty(0, np.int64)
    paths = {split: run.params[f"{split}_data"] for split in SPLITS if run.params.get(f"{split}_data")}
    with Progress("indexing texts", sum(map(count_rows, paths.values()))) as progress:
        for split, path in paths.items():
            for part in slices_of(path, columns):
                id_columns = {name: part[column] for name, column in entities.columns.items()}
                batch = {name: torch.from_numpy(part[name]) for name in read}
                ids = {name: row_keys.ids_of(name, column).reshape(len(column), -1) for name, column in batch.items()}
                widths = widths or {name: column.shape[1] for name, column in ids.items()}
                unit_keys = row_keys.of_units(batch)
                rows.add(sum_of(unit_keys).numpy(), torch.stack(unit_keys, dim=1).numpy())
                for unit, key in zip(plan, unit_keys, strict=True):
                    values = torch.cat([ids[name] for name in unit.columns], dim=1).int().numpy()
                    units.setdefault(unit.name, Distinct(values.shape[1], np.int32)).add(key.numpy(), values)
                    if unit.name in id_columns:
                        entities.add(unit.name, id_columns[unit.name], key.numpy())
                progress.update(len(unit_keys[0]))
            if split == "train":
                train_keys = rows.all()[0]
    keys, keys_of_units = rows.all()
    texts, positions = [], []
    for number, unit in enumerate(plan):
        known, ids_of_texts = units[unit.name].all()
        widths_of_unit = {name: widths[name] for name in unit.columns}
        texts.append(UnitTexts(unit.name, unit.sentences, widths_of_unit, ids_of_texts))
        places = texts[-1].keep_distinct()
        positions.append(places[np.searchsorted(known, keys_of_units[:, number])])
        if unit.name in entities.columns:
            entities.warn(unit.name, known, places, texts[-1])
    return RowIndex(
        tuple(texts),
        row_keys,
        torch.from_numpy(keys),
        torch.from_numpy(np.stack(positions, axis=1)),
        torch.from_numpy(np.isin(keys, train_keys, assume_unique=True)),
    )


def reader_of(run: Run) -> Callable[[str, list[str]], Iterator[dict[str, np.ndarray]]]:
    """Reads columns of a split in slices; of long sequences, a row has the columns of its target item."""
    item_info = run.params.get("item_info")
    if not item_info:
        return partial(read_slices, rows=CHUNK)
    from fuxictr_llm.data.loader import Items

    return partial(Items(item_info, run.feature_map).read_slices, rows=CHUNK)


def _warn_of_empty(index: RowIndex) -> None:
    for number, unit in enumerate(index.units):
        if unit.empty is not None:
            rows = int((index.positions[:, number] == unit.empty).sum())
            logging.warning(
                "%d of %d distinct rows have an empty text of unit %r (all its values are missing or unseen in train): "
                "their vector is zero",
                rows,
                len(index),
                unit.name,
            )
