"""Cells of raw rows in the types that they had in training, whoever gives them: csv texts, JSON, pandas, parquet."""

from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.data.fills import is_list
from fuxictr_llm.data.fitted import Fitted
from fuxictr_llm.data.id_columns import EXACT
from fuxictr_llm.data.raw import no_number

LONGEST = 40  # characters of a text that are shown


def typed(
    rows: pl.DataFrame, types: Mapping[str, pl.DataType], fitted: Fitted, where: Callable[[int], str]
) -> tuple[pl.DataFrame, dict[str, int]]:
    """Raw columns in these types; and of each that has some, how many cells are empty.

    A whole number that came as a float (pandas stores numbers so where one is missing) is a whole number again where a
    text or a whole number is wanted.

    Raises:
        UserError: a cell cannot be of its type; `where` tells its row.
    """
    schema = rows.schema
    for name, wanted in types.items():
        if schema[name].is_float() and (wanted.is_integer() or wanted == pl.String):
            _check_exact(rows[name], fitted, where)
    made = rows.select(_cast(name, schema[name], wanted, fitted) for name, wanted in types.items())
    checks = {name: check for name in types if (check := _is_empty(name, schema[name])) is not None}
    empty = rows.select(check.sum() for check in checks.values()).row(0, named=True) if checks else {}
    blank = {name: rows[name].null_count() + empty.get(name, 0) for name in types}
    for name, wanted in types.items():
        has = schema[name]
        if has != wanted and not is_list(has) and wanted != pl.String:
            _check_cast(rows[name], made[name], blank[name], fitted, where)
    return made, {name: count for name, count in blank.items() if count}


def _is_empty(name: str, has: pl.DataType) -> pl.Expr | None:
    """Whether a cell holds nothing, though it is not null; None for types of which none can."""
    if has == pl.String:
        return pl.col(name) == ""
    return (pl.col(name).list.len() == 0).alias(name) if isinstance(has, pl.List) else None


def _cast(name: str, has: pl.DataType, wanted: pl.DataType, fitted: Fitted) -> pl.Expr:
    value = pl.col(name)
    if has == wanted or is_list(has):
        if is_list(has) and not is_list(wanted):
            raise UserError(f"column {name!r} holds lists, and is of single values; give one value a row")
        if is_list(has) and has.inner.is_nested():
            raise UserError(f"column {name!r} holds lists of {has.inner}; give lists of texts or numbers")
        return value
    if has.is_nested() or has in (pl.Object, pl.Binary):
        raise UserError(f"column {name!r} holds values of type {has}; give texts or numbers")
    if is_list(wanted):
        if has == pl.Null:
            return value.cast(wanted)
        raise UserError(f"column {name!r} holds {has}; it takes vectors, as lists of numbers, which csv cannot hold")
    if wanted == pl.String and has.is_float() and not fitted.stored[name].startswith("Float"):
        whole = pl.when(value == value.round()).then(value.cast(pl.Int64, strict=False).cast(pl.String))
        return whole.otherwise(pl.when(value.is_not_nan()).then(value.cast(pl.String))).alias(name)
    return value.cast(wanted, strict=False)


def _check_exact(given: pl.Series, fitted: Fitted, where: Callable[[int], str]) -> None:
    """Floats in the place of whole numbers must not be so large that two whole numbers are one float."""
    row = given.abs().arg_max()
    if row is None or fitted.stored[given.name].startswith("Float") or not EXACT < abs(given[row]) < float("inf"):
        return
    what = f"column {given.name!r} holds the float {given[row]!r} in {where(row)}"
    raise UserError(f"{what}, too large for an exact whole number; give whole numbers or texts")


def _check_cast(given: pl.Series, made: pl.Series, blank: int, fitted: Fitted, where: Callable[[int], str]) -> None:
    if given.dtype == pl.String and made.null_count() == blank:
        return
    wrong = given.is_not_null() & made.is_null()
    if given.dtype == pl.String:
        wrong &= given != ""
    elif given.dtype.is_float() and made.dtype.is_integer():
        wrong |= given.is_not_null() & (made.cast(given.dtype) != given)
    row = wrong.fill_null(False).arg_max()
    if row is None or not wrong[row]:
        return
    col: dict[str, Any] = {"type": "numeric", "dtype": "float", **fitted.declared.get(given.name, {})}
    if given.name not in fitted.declared:
        col["type"] = "label"
    shown = given[row]
    what = f"the text {shown[:LONGEST]!r}" if isinstance(shown, str) else repr(shown)
    raise UserError(f"column {given.name!r} holds {what} in {where(row)}; {no_number(col)}")
