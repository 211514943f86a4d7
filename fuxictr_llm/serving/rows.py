"""Rows as programs have them (a dict, a list of dicts, a frame of pandas or polars) -> a polars frame."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from fuxictr_llm.common.errors import UserError, reason_of

FORMS = "a dict, a list of dicts, a pandas or a polars frame"


def as_frame(rows: Any, names: Sequence[str], lists: Sequence[str] = ()) -> pl.DataFrame:
    """Those of the named columns that the rows have; the others are not looked at.

    Args:
        rows: a dict is one row where its values are single ones, and columns where they are lists or arrays.
        names: raw columns.
        lists: those of them in which a list is one value.

    Raises:
        UserError: they are of another form, or a column cannot be one.
    """
    if isinstance(rows, pl.LazyFrame):
        rows = rows.collect()
    if isinstance(rows, pl.DataFrame):
        return rows.select(name for name in names if name in rows.columns)
    if type(rows).__module__.partition(".")[0] == "pandas" and hasattr(rows, "columns"):
        there = [name for name in names if name in rows.columns]
        return pl.DataFrame([_series(name, rows[name], of_pandas=True) for name in there])
    if isinstance(rows, Mapping):
        there = [name for name in names if name in rows]
        if _is_one_row(rows, there, lists):
            rows = [rows]
        else:
            return _frame([_series(name, rows[name]) for name in there])
    if (
        isinstance(rows, Sequence)
        and not isinstance(rows, str | bytes)
        and all(isinstance(row, Mapping) for row in rows)
    ):
        there = [name for name in names if any(name in row for row in rows)] if rows else [*names]
        return _frame([_series(name, [row.get(name) for row in rows]) for name in there])
    raise UserError(f"rows are {FORMS} (got {type(rows).__name__})")


def _is_one_row(rows: Mapping[str, Any], names: Sequence[str], lists: Sequence[str]) -> bool:
    single = [name for name in names if _is_single(rows[name])]
    if single and (wrong := [name for name in names if name not in single and name not in lists]):
        raise UserError(
            f"the rows have one value of {single[0]!r} and several of {wrong[0]!r}; a dict has single values for one "
            "row, or lists for many"
        )
    return bool(single)


def _is_single(value: Any) -> bool:
    return not isinstance(value, list | tuple | pl.Series) and (isinstance(value, str | bytes) or np.ndim(value) == 0)


def _series(name: str, values: Any, of_pandas: bool = False) -> pl.Series:
    try:
        if of_pandas:
            return pl.Series(name, pl.from_pandas(values))
        return values.alias(name) if isinstance(values, pl.Series) else pl.Series(name, values)
    except Exception as error:  # values of several types, for which each library has errors of its own
        cells = [*values]
        if any(isinstance(cell, Mapping | list | tuple | np.ndarray) for cell in cells):
            raise UserError(f"column {name!r} holds values of several types ({reason_of(error)})") from error
        texts = [None if _is_missing(cell) else str(cell) for cell in cells]
        try:
            return pl.Series(name, texts, dtype=pl.String)
        except UnicodeEncodeError as error:  # of half a sign, as JSON can write it
            raise UserError(f"column {name!r} holds a text that is not Unicode ({reason_of(error)})") from error


def _is_missing(cell: Any) -> bool:
    return cell is None or cell != cell  # NaN


def _frame(columns: list[pl.Series]) -> pl.DataFrame:
    other = next((column for column in columns if len(column) != len(columns[0])), None)
    if other is not None:
        raise UserError(
            f"column {other.name!r} has {len(other)} rows, {columns[0].name!r} has {len(columns[0])}; give as many"
        )
    return pl.DataFrame(columns)


def row_in_words(row: int) -> str:
    """Words for a row of a program, which counts from 0."""
    return f"row {row + 1}"
