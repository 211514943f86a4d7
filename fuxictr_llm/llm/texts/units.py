"""Units of text: which columns make one text, the 64-bit keys of texts and rows, and entities with several texts.

A key is the same for equal ids, on the CPU and on a GPU, from every loader. An entity should have one text: a title
that is written in two ways makes two texts of a movie, which is warned of.

Shape symbols: `B` rows of a batch, `U` units of text, `W` ids of a unit's columns, `N` distinct texts of a unit.
"""

import functools
import hashlib
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fuxictr_llm.common.errors import UserError, unknown
from fuxictr_llm.common.runs import Run
from fuxictr_llm.config.language_models import RowTextsConfig
from fuxictr_llm.llm.catalog import FieldCatalog, load_catalog
from fuxictr_llm.llm.texts.folds import ODD
from fuxictr_llm.llm.texts.sentences import Sentence, sentence_of, side_sentences, train_ids

ROW = "row"
# The unit of columns that belong to no entity.
CONTEXT = "context"


@dataclass(frozen=True)
class UnitPlan:
    """A unit of text.

    Attributes:
        name: of the unit, an entity or `row`.
        columns: whose ids its text depends on.
        sentences: what its text is put together from.
        id: the column of the entity's ids; None where it is no entity.
    """

    name: str
    columns: tuple[str, ...]
    sentences: tuple[Sentence, ...]
    id: str | None = None


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
        return [sum_of([self._of_column(name, batch[name]) for name in columns]) for columns in self.units]

    def __call__(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The key of the whole row, int64 `[B]`, on the batch's device."""
        return sum_of(self.of_units(batch))

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


def sum_of(keys: Sequence[Tensor]) -> Tensor:
    """Of int64 `[B]`, modulo 2^64."""
    return functools.reduce(torch.add, keys)


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
        self._known: tuple[np.ndarray, np.ndarray] = np.empty(0, np.int64), np.empty((0, width), dtype)
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


class EntityTexts:
    """The distinct pairs of an entity's id and the key of its text, as rows go by.

    Args:
        plan: the units; only those whose entity's id is a column of the data set are indexed.
        run: the experiment under way.
    """

    def __init__(self, plan: Sequence[UnitPlan], run: Run):
        self.run = run
        features = run.feature_map.features
        one_id = [unit for unit in plan if unit.id and features.get(unit.id, {}).get("type") in ("categorical", "meta")]
        # A unit whose only column is its entity's id has one text for each.
        self.columns = {unit.name: str(unit.id) for unit in one_id if unit.columns != (unit.id,)}
        self._pairs = {name: Distinct(2, np.int64) for name in self.columns}

    def add(self, name: str, ids: np.ndarray, keys: np.ndarray) -> None:
        """The ids `[B]` of a unit's entity, and the keys `[B]` of its texts.

        Raises:
            KeyCollision: different pairs cannot be told apart with these keys.
        """
        pairs = np.stack([ids.astype(np.int64), keys], axis=1)
        self._pairs[name].add(pairs[:, 0] * ODD + pairs[:, 1], pairs)  # modulo 2^64

    def warn(self, name: str, keys: np.ndarray, positions: np.ndarray, texts: Sequence[str]) -> None:
        """Say how many entities of a unit have several texts.

        Args:
            keys: of all the unit's texts, sorted, `[M]`.
            positions: where the text of each is, `[M]`.
            texts: the N texts.
        """
        ids, of_text = self._pairs[name].all()[1].T
        pairs = np.unique(np.stack([ids, positions[np.searchsorted(keys, of_text)]], axis=1), axis=0)
        known, first, counts = np.unique(pairs[:, 0], return_index=True, return_counts=True)
        names = self._values(self.columns[name])
        several = [place for place in np.flatnonzero(counts > 1) if names is None or known[place] in names]
        if not several:
            return
        place = several[0]
        one, other = (texts[int(position)] for position in pairs[first[place] : first[place] + 2, 1])
        index = int(known[place])
        logging.warning(
            "%d of %d values of %r, the id of entity %r, have several texts, and each is encoded; %s has %d: %r and %r",
            len(several),
            len(known) if names is None else len(names),
            self.columns[name],
            name,
            f"id {index}" if names is None else repr(names[index]),
            counts[place],
            one,
            other,
        )

    def _values(self, column: str) -> dict[int, str] | None:
        """Id -> train value; None of a meta column, whose values are not kept."""
        if self.run.feature_map.features[column]["type"] == "meta":
            return None
        try:
            return {index: value for value, index in train_ids(self.run, column)[0].items()}
        except UserError:  # a built data set without its vocabulary
            return None


def plan_units(config: RowTextsConfig, run: Run) -> list[UnitPlan]:
    """The units of text of the run's data set.

    Raises:
        UserError: no column can be put into words, or a named column or side table is not there.
    """
    catalog = load_catalog(run.feature_map, run.data_dir, run.params.get("field_config"))
    fields = text_fields(config, catalog, run.feature_map.features)
    sides = side_sentences(config.value_texts or {}, run)
    columns = list(dict.fromkeys([*fields, *sides]))
    if not columns:
        raise UserError(
            f"data set {run.params['dataset_id']!r} has nothing to read: no column's values are words; name columns "
            "with text_fields, give their values words in the field config, or longer texts with value_texts"
        )
    if config.text_fields is None and not catalog.entities:
        _warn_of_left_out([name for name in catalog.names if name not in columns])
    words = {field.name: field.text for field in catalog.fields}
    ids = {entity.name: entity.id for entity in catalog.entities}
    units = []
    for name, names in _grouped(config, catalog, columns).items():
        # A meta column has no words: sentence_of raises an error that says so.
        sentences = [sentence_of(run, column, words.get(column, column)) for column in names if column in fields]
        sentences += [sides[column] for column in names if column in sides]
        units.append(UnitPlan(name, tuple(names), tuple(sentences), ids.get(name)))
        logging.info("Texts of unit %r tell %s", name, ", ".join(names))
    return units


def _warn_of_left_out(names: Sequence[str]) -> None:
    """Say which columns the texts do not tell, where nobody chose that: the field config has no entities."""
    if names:
        logging.warning(
            "the texts leave out %s, whose values are no words: name all columns that they shall tell with "
            "text_fields, say in the field config's entities which describe whom, or give coded values words there",
            ", ".join(names),
        )


def text_fields(config: RowTextsConfig, catalog: FieldCatalog, features: Mapping[str, Any]) -> list[str]:
    """The columns that texts are made of: those named, or else the entities', or else those whose values are words.

    Raises:
        UserError: a named one is not there.
    """
    if config.text_fields is not None:
        for name in config.text_fields:
            if name not in features:
                raise unknown("column", name, features, "'text_fields'")
        return list(dict.fromkeys(config.text_fields))
    of_entities = [name for entity in catalog.entities for name in entity.text if name in features]
    return of_entities or catalog.names_of_words


def _grouped(config: RowTextsConfig, catalog: FieldCatalog, columns: Sequence[str]) -> dict[str, list[str]]:
    owner = {column: entity.name for entity in catalog.entities for column in (entity.id, *entity.text)}
    if config.text_units == "entity" and not owner.keys() & set(columns):
        logging.info("The field config has no entities of these columns: a row is one text")
    if config.text_units == ROW or not owner.keys() & set(columns):
        return {ROW: list(columns)}
    units: dict[str, list[str]] = {}
    for column in columns:
        units.setdefault(owner.get(column, CONTEXT), []).append(column)
    return units
