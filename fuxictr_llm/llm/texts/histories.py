"""What the user of a row did before, told by the texts of items: from a column of ids, or derived from train rows.

A derived history is of train rows that the user liked, and never of the row itself: a train row has those before it
(`past`) or those of other folds (`folds`), a row of another split all of train. No label but train's is read.

Shape symbols: `B` rows of a batch, `P` distinct rows (who, which item, with which text), `L` items of a history.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fuxictr_llm.common.errors import UserError, unknown
from fuxictr_llm.common.runs import Run
from fuxictr_llm.data import SPLITS
from fuxictr_llm.llm.catalog import load_catalog
from fuxictr_llm.llm.texts.folds import mixed_fold
from fuxictr_llm.llm.texts.row_texts import SALTS, RowIndex, places_in, reader_of
from fuxictr_llm.llm.texts.sentences import owner_of, train_ids
from fuxictr_llm.llm.texts.units import Distinct, KeyCollision, KeyLookup, RowKeys

# So many items are in a derived history at most, the latest.
MOST = 50
FOLDS = 5


@dataclass(frozen=True, eq=False)
class Histories:
    """The history of each distinct row.

    Attributes:
        unit: the unit of text that tells an item: its number in the index of texts.
        row_keys: how keys are made.
        keys: int64 `[P]`, sorted.
        own: int64 `[P]`, the text of the row's own item.
        train_rows: bool `[P]`, whether the row occurs in the train split.
        items_of: rows `[n]` -> the texts of their histories' items, int64 `[n, L]`, -1 where there are fewer.
        sha256: digest of all of it.
    """

    unit: int
    row_keys: RowKeys
    keys: Tensor
    own: Tensor
    train_rows: Tensor
    items_of: Callable[[Tensor], Tensor]
    sha256: str

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def _lookup(self) -> KeyLookup:
        return KeyLookup(self.keys.numpy())

    def row_of(self, batch: Mapping[str, Tensor]) -> Tensor:
        """int64 `[B]` on the CPU.

        Raises:
            UserError: a row has ids that no row of the data set had when the index was made.
        """
        return places_in(self._lookup, self.row_keys(batch))


def find_histories(asked: Mapping[str, str], run: Run, index: RowIndex) -> Histories:
    """The histories of all rows, as `text_history` asks for them.

    Args:
        asked: `column`, a sequence of item ids; or `of`, `liked` and maybe `user` and `rows`, to derive one.
        index: of the rows' texts.

    Raises:
        UserError: a column is not there, has no text, or holds the row's own item.
    """
    features = run.feature_map.features
    column = asked.get("column")
    for key in ("column", "of", "user"):
        if key in asked and asked[key] not in features:
            raise unknown("column", asked[key], features, "text_history")
    if column is not None and features[column]["type"] != "sequence":
        raise UserError(f"text_history: column {column!r} is of type {features[column]['type']}, not a sequence of ids")
    if "liked" in asked and asked["liked"] not in run.feature_map.labels:
        raise unknown("label", asked["liked"], run.feature_map.labels, "text_history")
    item = asked["of"] if column is None else owner_of(column, features)
    if item == column:
        raise UserError(
            f"text_history: column {column!r} shares no embedding with an item's id: give it share_embedding"
        )
    catalog = load_catalog(run.feature_map, run.data_dir, run.params.get("field_config"))
    who = column or asked.get("user") or next((one.id for one in catalog.entities if one.name == "user"), None)
    if who is None or who not in features:
        raise UserError("text_history: no entity 'user' with an id is in the field config; name its column with user")
    name = next((one.name for one in catalog.entities if one.id == item), None)
    units = [unit.name for unit in index.units]
    if name not in units:
        raise UserError(
            f"text_history: {item!r} is the id of no entity that has a text of its own (units: {', '.join(units)}); "
            "describe it in the field config's entities, and take text_units: entity"
        )
    read = _Rows(run, index, units.index(name), who, item, asked.get("liked"))
    if column is not None:
        return _given(column, run, read)
    rows = asked.get("rows", "past" if _in_time(run.params) else "folds")
    return _derived(run, read, past=rows == "past")


def _in_time(params: Mapping[str, Any]) -> bool:
    """Whether train's rows are in the order of time: a random split of rows that were in it is not."""
    resplit = params.get("resplit")
    return (resplit["by"] if resplit else params.get("prepare_split")) == "time"


class _Rows:
    """The rows of all splits: who, which item, with which text; of train also whether it was liked.

    Attributes:
        ids: int32 `[P, W]` of the distinct rows: who (an id, or those of a history), then the item.
        own: int64 `[P]`, the item's text.
        in_train: bool `[P]`.
        train: int64 `[n, 3]`, user, item and text of train's rows, in order (of a given history, its last id).
        liked: bool `[n]`.
        first_text: item -> the text of the first row that has it, train's before others'.
    """

    def __init__(self, run: Run, index: RowIndex, unit: int, who: str, item: str, label: str | None):
        self.unit, self.who, self.item, self.index = unit, who, item, index
        columns = list(dict.fromkeys([who, item, *index.units[unit].fields]))
        texts = list(dict.fromkeys(name for fields in index.row_keys.units for name in fields))
        for salt in range(SALTS):
            self.row_keys = RowKeys([columns], index.row_keys.numbers, salt)
            try:
                self._read(run, list(dict.fromkeys([*columns, *texts])), label)
                return
            except KeyCollision:
                continue
        raise UserError(f"text_history: different rows have the same 64-bit keys of {', '.join(columns)}")

    def _read(self, run: Run, columns: list[str], label: str | None) -> None:
        slices_of = reader_of(run)
        rows: Distinct | None = None
        train, liked, self.first_text = [], [np.zeros(0, dtype=bool)], dict[int, int]()
        for split in SPLITS:
            path = run.params.get(f"{split}_data")
            labels = [label] if label and split == "train" else []  # of no other split
            for part in slices_of(path, [*columns, *labels]) if path else ():
                batch = {name: torch.from_numpy(part[name]) for name in columns}
                text = self.index.positions[self.index.row_of(batch), self.unit].numpy()
                who, item = part[self.who].reshape(len(text), -1), part[self.item]
                values = np.column_stack([who, item, text]).astype(np.int32)
                rows = rows or Distinct(values.shape[1], np.int32)
                rows.add(self.row_keys(batch).numpy(), values)
                items, first = np.unique(item, return_index=True)
                self.first_text = dict(zip(items.tolist(), text[first].tolist(), strict=True)) | self.first_text
                if split == "train":
                    train.append(np.column_stack([who[:, -1], item, text]).astype(np.int64))
                liked += [part[name] > 0.5 for name in labels]
            if split == "train":
                assert rows is not None  # a built split has rows
                train_keys = rows.all()[0]
        assert rows is not None
        self.keys, values = rows.all()
        self.ids, self.own = values[:, :-1], values[:, -1].astype(np.int64)
        self.in_train = np.isin(self.keys, train_keys, assume_unique=True)
        self.train, self.liked = np.concatenate(train), np.concatenate(liked)

    def histories(self, items_of: Callable[[Tensor], Tensor], *content: np.ndarray) -> Histories:
        """Of what `items_of` gives, which depends on `content`."""
        arrays = [self.keys, self.own, self.in_train, *content]
        digest = hashlib.sha256("".join(hashlib.sha256(array.tobytes()).hexdigest() for array in arrays).encode())
        keys, own, in_train = (torch.from_numpy(array) for array in (self.keys, self.own, self.in_train))
        return Histories(self.unit, self.row_keys, keys, own, in_train, items_of, digest.hexdigest())


def _given(column: str, run: Run, rows: _Rows) -> Histories:
    """The items of a column of ids; those that have no row of their own are left out."""
    known = set(train_ids(run, rows.item)[0].values())
    histories, item = rows.ids[:, :-1], rows.ids[:, -1:]
    own = ((histories == item) & np.isin(item, [*known])).any(axis=1)
    if own.any():
        raise UserError(
            f"text_history: column {column!r} holds the row's own {rows.item!r} in {own.sum()} of {len(own)} distinct "
            "rows, and what a row is about did not come before it; leave it out there, or derive a history: of, liked"
        )
    text_of = np.full(int(rows.ids.max()) + 1, -1)
    for index, text in rows.first_text.items():
        if index in known:  # all others share one id
            text_of[index] = text

    def items_of(places: Tensor) -> Tensor:
        return torch.from_numpy(text_of[histories[places.numpy()]])

    return rows.histories(items_of, histories, text_of)


def _derived(run: Run, rows: _Rows, past: bool) -> Histories:
    """The items that the user liked in train, at most `MOST`, the latest last."""
    users, items = rows.ids.astype(np.int64).T
    pairs, train_pairs, count = _paired(users, items), _paired(*rows.train[:, :2].T), len(rows.train)
    distinct, first = np.unique(train_pairs, return_index=True)
    places = np.searchsorted(distinct, pairs).clip(max=len(distinct) - 1)
    in_train = distinct[places] == pairs
    before = np.where(in_train & past, first[places], count)
    fold = np.where(in_train & (not past), fold_of(users, items), FOLDS)  # FOLDS: no row's
    known = [*train_ids(run, rows.who)[0].values()]  # all other users share one id
    place = np.flatnonzero(rows.liked & np.isin(rows.train[:, 0], known))
    place = place[np.lexsort([place, rows.train[place, 0]])]  # by user, then in order
    liked = rows.train[place]
    folds = fold_of(liked[:, 0], liked[:, 1])

    def items_of(chosen: Tensor) -> Tensor:
        found = np.full((len(chosen), MOST), -1)
        for number in np.unique(fold[chosen]):
            others = folds != number
            if not others.any():
                continue
            of_fold = np.flatnonzero(fold[chosen] == number)
            of_rows = chosen.numpy()[of_fold]
            order = liked[others, 0] * (count + 1) + place[others]
            user = users[of_rows] * (count + 1)
            start, end = np.searchsorted(order, user), np.searchsorted(order, user + before[of_rows])
            at = end[:, None] + np.arange(-MOST, 0)
            found[of_fold] = np.where(at >= start[:, None], liked[others, 2][at.clip(min=0)], -1)
        return torch.from_numpy(found)

    return rows.histories(items_of, fold, before, liked, place)


def _paired(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    return users * 2**32 + items


def fold_of(users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """The fold of each pair of ids, `[n]`: all rows of a pair share one."""
    return mixed_fold(map(torch.from_numpy, (users, items)), FOLDS).numpy()
