"""Values of columns in words, and the sentences that they make.

A built data set has FuxiCTR's vocabulary of a column's values; a field config may have words for them. The text of a
row says of a column: `<words> is <value>.`, or it is the longer text of a side table (`value_texts`).

Shape symbols: `W` ids of a column (a sequence has as many as it is long).
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from fuxictr_llm.common.errors import UserError, reason_of, unknown
from fuxictr_llm.common.files import read_json
from fuxictr_llm.common.runs import Run
from fuxictr_llm.data.field_words import RESERVED, read_field_config, values_for_missing
from fuxictr_llm.data.fills import not_a_number
from fuxictr_llm.host.columns import feature_columns
from fuxictr_llm.llm.catalog import in_words_of

ENDS = (".", "!", "?")
# How many values that do not match are named.
EXAMPLES = 3
NO_VALUES = {
    "numeric": "numbers are no values of a vocabulary",
    "embedding": "its rows are vectors already",
    "meta": "no model reads it",
}


class Sentence(Protocol):
    """What a text says of one column of a row."""

    @property
    def column(self) -> str: ...

    def text_of(self, ids: np.ndarray) -> str:
        """The sentence for ids `[W]`; empty where the value is missing or was not seen in train."""


@dataclass(frozen=True)
class ValueSentence:
    """`<words> is <value>.`; several values of a sequence are joined with commas.

    Attributes:
        values: id -> value in words; an id beyond them, and one without words, is left out.
    """

    column: str
    words: str
    values: Sequence[str]

    def text_of(self, ids: np.ndarray) -> str:
        values = [self.values[index] for index in ids if 0 <= index < len(self.values)]
        known = [value for value in values if value]
        return f"{self.words} is {', '.join(known)}." if known else ""


@dataclass(frozen=True)
class NumberSentence:
    """`<words> is <number>.`; ids are the bits of a float32.

    Attributes:
        missing: numbers that stand for missing ones.
    """

    column: str
    words: str
    missing: frozenset[float] = frozenset()

    def text_of(self, ids: np.ndarray) -> str:
        number = ids.astype(np.int32).view(np.float32)[0]
        is_known = np.isfinite(number) and float(number) not in self.missing
        return f"{self.words} is {as_written(number)}." if is_known else ""


@dataclass(frozen=True)
class SideSentence:
    """The longer text of a value."""

    column: str
    texts: Mapping[int, str]

    def text_of(self, ids: np.ndarray) -> str:
        return " ".join(self.texts[index] for index in ids.tolist() if index in self.texts)


def sentence_of(run: Run, column: str, words: str) -> Sentence:
    """The sentence that says a column's values.

    Raises:
        UserError: it is of a type that has no values, or its numbers are normalized.
    """
    if run.feature_map.features[column]["type"] == "numeric":
        declared = feature_columns(run.params) if run.params.get("feature_cols") else []  # as it was built
        if any(col["name"] == column and col.get("normalizer") for col in declared):
            raise UserError(
                f"column {column!r} is normalized, so its numbers mean nothing in words; name others: text_fields"
            )
        missing = frozenset(float(np.float32(value)) for value in missing_values(run, column))
        return NumberSentence(column, words, missing)
    ids, oov_idx = train_ids(run, column)
    in_words = words_of(run, column, list(ids))
    values = [""] * oov_idx
    for value, index in ids.items():
        values[index] = in_words.get(value, value).strip()
    return ValueSentence(column, words, values)


def as_written(number: np.float32) -> str:
    """A number as one would write it: 3, 0.25, 1200000."""
    return np.format_float_positional(number, trim="-")


def side_sentences(tables: Mapping[str, Mapping[str, str]], run: Run) -> dict[str, SideSentence]:
    """For each column with a table, the texts of its train values; rows with an empty text are left out.

    Raises:
        UserError: no such column, or a table is missing, lacks a column, has a key twice, or none of the values.
    """
    return {column: SideSentence(column, _texts(column, table, run)) for column, table in tables.items()}


def _texts(column: str, table: Mapping[str, str], run: Run) -> dict[int, str]:
    if column not in run.feature_map.features:
        raise unknown("column", column, run.feature_map.features, "'value_texts'")
    ids = train_ids(run, column)[0]
    by_value = in_words_of(side_texts(column, table), ids)
    texts = {ids[key]: text if text.endswith(ENDS) else f"{text}." for key, text in by_value.items() if key in ids}
    without, strange = [value for value in ids if value not in by_value], [key for key in by_value if key not in ids]
    if not texts:
        raise UserError(
            f"value_texts of {column!r}: none of the {len(by_value)} keys with a text in {table['file']!r} "
            f"({_some(strange)}) is a train value of the column ({_some(without)})"
        )
    logging.log(
        logging.WARNING if without else logging.INFO,
        "value_texts of %r: %d of %d train values have a text in %r%s%s",
        column,
        len(texts),
        len(ids),
        table["file"],
        f"; without one: {_some(without)}" if without else "",
        f"; keys of no train value: {len(strange)} ({_some(strange)})" if strange else "",
    )
    run.notes.setdefault("value_texts", {})[column] = {
        "file": table["file"],
        "train_values": len(ids),
        "with_text": len(texts),
        "without_text": without[:EXAMPLES],
        "keys_of_no_train_value": len(strange),
        "such_keys": strange[:EXAMPLES],
    }
    return texts


def _some(values: Sequence[str]) -> str:
    return ", ".join(map(repr, values[:EXAMPLES]))


def side_texts(column: str, table: Mapping[str, str]) -> dict[str, str]:
    """Key -> text of a column's table in `value_texts`.

    Raises:
        UserError: the table is missing, cannot be read, lacks a column or has a key twice.
    """
    path = Path(table["file"])
    where = f"value_texts of {column!r}: {str(path)!r}"
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"{where} must end in .csv or .parquet")
    if not path.is_file():
        raise UserError(f"{where} is missing")
    try:
        frame = pl.scan_csv(path, infer_schema=False) if path.suffix == ".csv" else pl.scan_parquet(path)
        present = frame.collect_schema().names()
        for name in (table["key"], table["text"]):
            if name not in present:
                raise unknown("column", name, present, where)
        frame = frame.select(key=pl.col(table["key"]).cast(pl.String), text=pl.col(table["text"]).cast(pl.String))
        rows = frame.filter(pl.col("key").is_not_null()).collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{where} cannot be read: {reason_of(error)}") from error
    twice = rows.filter(pl.col("key").is_duplicated())["key"].head(1).to_list()
    if twice:
        raise UserError(f"{where} has the key {twice[0]!r} more than once; leave one row of it")
    return {key: text.strip() for key, text in rows.iter_rows() if text and text.strip()}


def train_ids(run: Run, name: str) -> tuple[dict[str, int], int]:
    """Train value -> id of the embedding of a column, in FuxiCTR's order, and the id of unseen ones.

    Values that stand for missing ones in this column are left out.

    Raises:
        UserError: the column is of a type that has no vocabulary, or there are no values in it.
    """
    return _ids_without_missing(run, name, [name])


def vocabulary_of(run: Run, name: str) -> tuple[tuple[str, ...], int]:
    """The train values alone, and the id of unseen ones, without what is missing in a column of this embedding."""
    ids, oov_idx = _ids_without_missing(run, name, _sharing(name, run.feature_map.features))
    return tuple(ids), oov_idx


def _ids_without_missing(run: Run, name: str, columns: Iterable[str]) -> tuple[dict[str, int], int]:
    features = run.feature_map.features
    kind = features[name]["type"]
    if kind in NO_VALUES:
        raise UserError(f"column {name!r} is of type {kind}: {NO_VALUES[kind]}; name a categorical or sequence column")
    path = run.data_dir / "feature_vocab.json"
    vocabulary = (read_json(path) or {}).get(owner_of(name, features)) or {}
    oov_idx = vocabulary.get("__OOV__", len(vocabulary))
    # A file of vectors that FuxiCTR built in puts values of other splits behind the id of unseen ones.
    ids = {value: index for value, index in vocabulary.items() if value not in RESERVED and index < oov_idx}
    if not ids:
        raise UserError(f"column {name!r} has no values in {str(path)!r}, so there is nothing to make vectors of")
    missing = {value for column in columns for value in missing_values(run, column, ids)}
    return {value: index for value, index in ids.items() if value not in missing}, oov_idx


def missing_values(run: Run, name: str, values: Iterable[str] = ()) -> list[str]:
    """The values that stand for missing ones in a column; in a warning, those that rows also have as such."""
    filled = values_for_missing(run.data_dir, name)
    for value, (missing, as_such) in filled.items():
        if as_such and (value in values or run.feature_map.features[name]["type"] == "numeric"):
            logging.warning(
                "column %r: %d rows lack a value and get %s for it, as %d rows have in the raw files: no text can tell "
                "them apart, so texts leave it out; give the column a fill_na that does not occur in it",
                name,
                missing,
                value,
                as_such,
            )
    return list(filled) if filled else not_a_number(values)


def words_of(run: Run, name: str, values: Sequence[str]) -> dict[str, str]:
    """The words that the field config has for values of a column, or of one that shares its embedding."""
    columns = run.feature_map.features
    words = read_field_config(run.params.get("field_config")).get("values") or {}
    # The same words whichever of the columns with this embedding asks.
    sharing = _sharing(name, columns)
    return {value: text for column in sharing for value, text in in_words_of(words.get(column) or {}, values).items()}


def _sharing(name: str, columns: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [other for other in columns if owner_of(other, columns) == owner_of(name, columns)]


def owner_of(name: str, columns: Mapping[str, Mapping[str, Any]]) -> str:
    """The column whose embedding a column uses."""
    shared = columns[name].get("share_embedding", name)
    return shared if shared in columns else name
