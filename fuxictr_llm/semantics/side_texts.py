"""Longer texts of a column's values, from a csv or parquet file: `value_texts` of a config."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from fuxictr_llm.errors import UserError, reason_of, unknown
from fuxictr_llm.semantics.catalog import in_words_of
from fuxictr_llm.semantics.sentences import SideSentence
from fuxictr_llm.semantics.vocabulary import train_ids

ENDS = (".", "!", "?")
# How many values that do not match are named.
EXAMPLES = 3


def side_sentences(tables: Mapping[str, Mapping[str, str]], run: Any) -> dict[str, SideSentence]:
    """For each column with a table, the texts of its train values; rows with an empty text are left out.

    Raises:
        UserError: no such column, or a table is missing, lacks a column, has a key twice, or none of the values.
    """
    return {column: SideSentence(column, _texts(column, table, run)) for column, table in tables.items()}


def _texts(column: str, table: Mapping[str, str], run: Any) -> dict[int, str]:
    if column not in run.feature_map.features:
        raise unknown("column", column, run.feature_map.features, "'value_texts'")
    ids = train_ids(run, column)[0]
    by_value = in_words_of(_read(column, table), ids)
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


def _read(column: str, table: Mapping[str, str]) -> dict[str, str]:
    """Key -> text."""
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
