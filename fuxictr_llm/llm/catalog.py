"""What the fields of a data set mean, in words, and which values they take in the train split.

Values come from `field_texts.json`, which our build writes: the frequent ones first, numbers as quantiles. A data
set that FuxiCTR built has none: there its vocabulary and its train file are asked.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fuxictr_llm.common.errors import UserError, nearest, unknown
from fuxictr_llm.common.files import read_json
from fuxictr_llm.data.build import built_columns
from fuxictr_llm.data.field_words import FILE, QUANTILES, RESERVED, read_field_config
from fuxictr_llm.data.fills import is_float, is_number, not_a_number

AFFECTS_VECTORS = False  # see common/code_digest.py

WORD = re.compile(r"[^\W\d_]{3}")


@dataclass(frozen=True)
class FieldEntry:
    """A field: its name in the data, what it means in words, and train values in words, frequent ones first."""

    name: str
    text: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Entity:
    """A user, an item and the like: the column of its id (if any), and the columns that describe it."""

    name: str
    id: str | None
    text: tuple[str, ...]


@dataclass(frozen=True)
class FieldCatalog:
    """The K fields of a data set in feature-map order, what the data set is about, and its entities."""

    about: str
    fields: tuple[FieldEntry, ...]
    entities: tuple[Entity, ...] = ()

    @property
    def names(self) -> list[str]:
        return [field.name for field in self.fields]

    @property
    def names_of_words(self) -> list[str]:
        """The fields most of whose train values are words."""
        return [field.name for field in self.fields if mostly_words(field.values)]


def load_catalog(feature_map: Any, data_dir: Path, field_config: str | None) -> FieldCatalog:
    """Words from the field config, values from the built data set's vocabulary, which holds train values alone.

    Args:
        feature_map: FuxiCTR's; meta columns and labels are left out.
        data_dir: the built data set's folder, with feature_vocab.json.
        field_config: an entry of the packaged field_config/, or a YAML file; None: column names serve as words.

    Raises:
        UserError: no such field config, it names a field that the data set lacks, or two fields have the same words.
    """
    words = read_field_config(field_config)
    columns = built_columns(data_dir)
    built = [name for name, spec in columns.items() if spec["type"] != "meta"]
    names = [name for name, spec in feature_map.features.items() if spec["type"] != "meta"]
    texts, value_texts = words.get("fields") or {}, words.get("values") or {}
    for name in [*texts, *value_texts]:
        if name not in built:  # words for fields that use_features leaves out do no harm
            hint = nearest(name, built) or ";"
            raise UserError(f"field config {field_config!r} has words for {name!r}{hint} fields: {', '.join(built)}")
    values = _TrainValues(feature_map, data_dir)
    fields: dict[str, FieldEntry] = {}
    for name in names:
        if not texts.get(name):
            logging.warning("no words for field %r in field config %r: its name is used", name, field_config)
        text = str(texts.get(name) or name.replace("_", " "))
        if text in fields:
            raise UserError(
                f"fields {fields[text].name!r} and {name!r} have the same words {text!r} in field config "
                f"{field_config!r}; a language model cannot tell them apart: give each its own"
            )
        known = values.of(name)
        # A history of items has the words of the items.
        shared = value_texts.get(feature_map.features[name].get("share_embedding")) or {}
        in_words = in_words_of(value_texts.get(name) or {}, known)
        if unused := sorted(in_words.keys() - {*known, *values.vocabulary_of(name)}):
            logging.warning(
                "field config %r has words for values of %r that train does not have: %s",
                field_config,
                name,
                ", ".join(unused[:5]),
            )
        in_words = {**in_words_of(shared, known), **in_words}
        fields[text] = FieldEntry(name, text, tuple(in_words.get(value, value) for value in known))
    about = str(words.get("about") or "rows of a click-through-rate data set")
    return FieldCatalog(about, tuple(fields.values()), _entities(words.get("entities") or {}, columns, field_config))


def _entities(entities: Mapping[str, Any], columns: Iterable[str], field_config: str | None) -> tuple[Entity, ...]:
    """The entities that a field config names; a column belongs to one of them at most.

    Raises:
        UserError: the data set has no such column, or two entities have it.
    """
    owner: dict[str, str] = {}
    for name, keys in entities.items():
        for column in dict.fromkeys([*([keys["id"]] if keys.get("id") else []), *(keys.get("text") or [])]):
            if column not in columns:
                raise unknown("column", column, columns, f"entity {name!r} of field config {field_config!r}")
            if owner.setdefault(column, name) != name:
                raise UserError(
                    f"field config {field_config!r}: column {column!r} is in the entities {owner[column]!r} and "
                    f"{name!r}; leave it in one"
                )
    return tuple(Entity(name, keys.get("id"), tuple(keys.get("text") or ())) for name, keys in entities.items())


def in_words_of(texts: Mapping[str, str | None], known: Iterable[str]) -> dict[str, str]:
    """Words of coded values, by the value as FuxiCTR's vocabulary has it: of a float `1.0` for what is written `1`."""
    known = frozenset(known)
    floats = bool(known) and all(map(is_float, known))
    words = {}
    for value, text in texts.items():
        if value not in known and is_number(value) and (floats or repr(float(value)) in known):
            value = repr(float(value))
        if text is not None:
            words[value] = text
    return words


def mostly_words(values: Iterable[str]) -> bool:
    """Whether more than half of the values hold three letters in a row: names do, ids and hashes mostly do not."""
    are_words = [WORD.search(value) is not None for value in values]
    return 2 * sum(are_words) > len(are_words)


class _TrainValues:
    """The values of fields in the train split, as they stand in FuxiCTR's vocabulary."""

    def __init__(self, feature_map: Any, data_dir: Path):
        self.specs, self.data_dir = feature_map.features, data_dir
        self.texts = read_json(data_dir / FILE) or {}
        self.vocabulary = read_json(data_dir / "feature_vocab.json") or {}

    def of(self, name: str) -> list[str]:
        """Values in words or numbers, the frequent ones first; of an embedding none."""
        known = self.texts.get(name, {})
        if self.specs[name]["type"] == "numeric":
            return _as_texts(known["quantiles"] if "quantiles" in known else self._quantiles(name))
        return known["values"] if "values" in known else self._of_vocabulary(name)

    def vocabulary_of(self, name: str) -> dict[str, int]:
        """Value -> id, without the ids that FuxiCTR reserves and those of missing values alone."""
        ids = self.vocabulary.get(name, {})
        filled = self.texts.get(name, {}).get("filled", {})
        missing = [value for value, (_, as_such) in filled.items() if not as_such]
        none = {*RESERVED, *missing, *([] if filled else not_a_number(ids.keys() - RESERVED))}
        return {value: index for value, index in ids.items() if value not in none}

    def _of_vocabulary(self, name: str) -> list[str]:
        """In FuxiCTR's order. Fields that share an embedding share one vocabulary: there the column itself is asked."""
        ids = self.vocabulary_of(name)
        shares = any(spec.get("share_embedding") == name for spec in self.specs.values())
        columns = list(self._columns(name)) if shares or self.specs[name].get("share_embedding") else []
        if columns:
            present = {index for column in columns for index in pc.unique(column).to_pylist()}
            ids = {value: index for value, index in ids.items() if index in present}
        return list(ids)

    def _quantiles(self, name: str) -> list[float]:
        columns = [column.to_numpy(zero_copy_only=False) for column in self._columns(name)]
        values = np.concatenate(columns).astype(float) if columns else np.empty(0)
        values = values[np.isfinite(values)]
        return np.quantile(values, np.linspace(0, 1, QUANTILES), method="nearest").tolist() if len(values) else []

    def _columns(self, name: str) -> Iterator[pa.Array]:
        """Of the rows of train; none where they lack it: of long sequences, the items' columns stand elsewhere."""
        for part in sorted([*self.data_dir.glob("train.parquet"), *self.data_dir.glob("train/*.parquet")]):
            if name not in pq.read_schema(part).names:
                continue
            column = pq.read_table(part, columns=[name]).column(name).combine_chunks()
            yield column.flatten() if pa.types.is_nested(column.type) else column


def _as_texts(numbers: Iterable[float]) -> list[str]:
    """Distinct numbers as one would write them: 3, 0.25, 1200000."""
    texts = [f"{number:.0f}" if float(number).is_integer() else f"{number:.4g}" for number in numbers]
    return list(dict.fromkeys(texts))
