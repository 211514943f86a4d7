"""Longer texts of a column's values, from a csv or parquet file: `value_texts` of a config."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from fuxictr_llm.errors import UserError, reason_of, unknown
from fuxictr_llm.semantics.sentences import SideSentence
from fuxictr_llm.semantics.vocabulary import train_ids

ENDS = (".", "!", "?")


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
    by_key = _read(column, table)
    # FuxiCTR's vocabulary has 1.0 for what a table calls 1.
    floats = any(value.endswith(".0") for value in ids)
    known = {f"{key}.0" if floats and key.isdigit() else key: text for key, text in by_key.items()}
    texts = {ids[key]: text if text.endswith(ENDS) else f"{text}." for key, text in known.items() if key in ids}
    if not texts:
        raise UserError(
            f"value_texts of {column!r}: none of the {len(by_key)} keys with a text in {table['file']!r} "
            f"({', '.join(list(by_key)[:3])}) is a train value of the column ({', '.join(list(ids)[:3])})"
        )
    return texts


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
