"""Checks of raw columns before anything is built: labels, numbers and vectors, by column, file and row."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import polars as pl

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.data.fills import fill_of, holds, is_list
from fuxictr_llm.data.raw import ROW, RawSplit, no_number
from fuxictr_llm.host.columns import feature_columns, label_columns

NUMBERS = ("int", int, "float", float)


class LabelCheck:
    """Checks the labels of a split.

    Args:
        raw: its rows.
        split: its files.
        params: settings with the labels.

    Attributes:
        frame, asked: the facts that `check` needs are what this frame gives for these.

    Raises:
        UserError: a label is stored as text or as lists.
    """

    def __init__(self, raw: pl.LazyFrame, split: RawSplit, params: Mapping[str, Any]):
        schema = raw.collect_schema()
        self._names = [label["name"] for label in label_columns(params) if label["name"] in schema]
        self._raw, self._split = raw, split
        self.frame, self.asked = raw.with_row_index(ROW), [pl.len().alias("rows")]
        for index, name in enumerate(self._names):
            if schema[name].is_nested() or schema[name] == pl.String:
                problem = f"must be 0 or 1 (got {schema[name]}); store it as a number"
                raise UserError(f"label {name!r} of {split.name} {problem}")
            value = pl.col(name).cast(pl.Float64)
            wrong = value.is_in([0.0, 1.0]).fill_null(False).not_()
            least_and_most = value.min().alias(f"min {index}"), value.max().alias(f"max {index}")
            self.asked += [_first(wrong, f"first {index}"), *least_and_most]

    def check(self, facts: Mapping[str, Any]) -> int:
        """The number of rows.

        Raises:
            UserError: there are none, or a label is not 0 or 1, or always the same.
        """
        split = self._split
        if not facts["rows"]:
            raise UserError(f"{split.name} is empty: it has a header and no rows")
        for index, name in enumerate(self._names):
            row = facts[f"first {index}"]
            if row is not None:
                value = self._raw.slice(row, 1).select(name).collect().item()
                file, place = str(split.locate(row)[0]), split.row_in_words(row)
                raise UserError(f"label {name!r} of data file {file!r} must be 0 or 1 (got {value} in {place})")
            if facts[f"min {index}"] == facts[f"max {index}"]:
                raise UserError(f"label {name!r} of {split.name} has one value only: nothing can be learnt or measured")
        return facts["rows"]


def check_stored(raw: Mapping[str, Mapping[str, pl.DataType]], params: Mapping[str, Any]) -> None:
    """Check what needs no row: settings of columns, and the types in which their values are stored.

    Args:
        raw: by split, column -> type.

    Raises:
        UserError: a column holds lists, single values or numbers where its type wants others.
    """
    for col in _active(params):
        name, kind = col["name"], col["type"]
        if kind in ("numeric", "embedding"):
            _check_fill(col)
        width = col.get("pretrain_dim")
        if kind == "embedding" and (not isinstance(width, int) or isinstance(width, bool) or width < 1):
            raise UserError(
                f"column {name!r} of type embedding needs pretrain_dim, the width of its vectors (got {width!r})"
            )
        stored = {split: schema[name] for split, schema in raw.items() if name in schema}
        for split, dtype in stored.items():
            if not col.get("preprocess"):
                _check_type(col, dtype, f"{split}_data")
        stored = {split: dtype for split, dtype in stored.items() if dtype != pl.Null}
        lists = [split for split, dtype in stored.items() if is_list(dtype)]
        others = [split for split in stored if split not in lists]
        if lists and others:
            where = f"{lists[0]}_data and none in {others[0]}_data"
            raise UserError(f"column {name!r} holds lists in {where}; store it alike")


class ValueCheck:
    """Checks what the columns of a split hold, as they go into the build.

    Args:
        made: its rows, preprocessed.
        split: its files.
        params: settings with the columns.

    Attributes:
        frame, asked: the facts that `check` needs are what this frame gives for these.

    Raises:
        UserError: a column is of a type that cannot hold what it should.
    """

    def __init__(self, made: pl.LazyFrame, split: RawSplit, params: Mapping[str, Any]):
        schema = made.collect_schema()
        self._made, self._split = made, split
        self.frame = made.with_row_index(ROW)
        self.asked: list[pl.Expr] = []
        self._cols = [col for col in _active(params) if col["name"] in schema]
        for index, col in enumerate(self._cols):
            _check_type(col, schema[col["name"]], split.name)
            wrong = unusable(col, schema[col["name"]])
            if wrong is not None:
                self.asked += [_first(wrong, f"first {index}"), wrong.sum().alias(f"count {index}")]
            elif col.get("dtype") in NUMBERS or col.get("preprocess"):
                # It is parsed, or made.
                self.asked.append(pl.col(col["name"]).null_count().alias(f"read {index}"))

    def check(self, facts: Mapping[str, Any]) -> None:
        """Raise what is wrong.

        Raises:
            UserError: a number is missing, NaN or infinite, a vector has another width, or a column holds something
                else than its type wants; with the file, the row and the value.
        """
        for index, col in enumerate(self._cols):
            row = facts.get(f"first {index}")
            if row is not None:
                raise _error_of(col, row, facts[f"count {index}"], self._made, self._split)


def check_made(values: Mapping[str, np.ndarray], cols: Mapping[str, str], start: int, split: RawSplit) -> None:
    """Check numbers as a normalizer has made them.

    Args:
        values: columns of a part of a split.
        cols: name -> normalizer of those that have one.
        start: the row of the split at which the part starts.

    Raises:
        UserError: one is infinite or NaN.
    """
    for name, normalizer in cols.items():
        place = first_not_finite(values[name])
        if place is not None:
            raise UserError(
                f"column {name!r}: normalizer {normalizer} makes {values[name][place]} of the value in "
                f"{split.where(start + place)}; correct the value, or leave normalizer out"
            )


def first_not_finite(values: np.ndarray) -> int | None:
    """The first row with a number that is NaN or infinite in float32, which models take; None where all are finite."""
    if values.dtype.kind != "f":
        return None
    with np.errstate(over="ignore"):
        finite = np.isfinite(values.astype(np.float32, copy=False)).reshape(len(values), -1)
    rows = np.logical_and.reduce(finite, axis=1)
    return None if rows.all() else int(np.argmin(rows))


def _active(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [col for col in feature_columns(params) if col.get("active", True)]


def _first(wrong: pl.Expr, name: str) -> pl.Expr:
    return pl.when(wrong).then(pl.col(ROW)).min().alias(name)


def _check_fill(col: Mapping[str, Any]) -> None:
    fill = col.get("fill_na")
    is_number = isinstance(fill, int | float) and not isinstance(fill, bool)
    if fill is not None and not (is_number and math.isfinite(fill)):
        what = "a text" if isinstance(fill, str) else "no finite number"
        raise UserError(f"column {col['name']!r} is {col['type']}, and fill_na {fill!r} {what}; give a number, or null")


def _check_type(col: Mapping[str, Any], dtype: pl.DataType, where: str) -> None:
    """Check the type in which a column is stored, or made; the rows are not read."""
    name, kind = col["name"], col["type"]
    is_plain = dtype.is_numeric() or dtype in (pl.Boolean, pl.String, pl.Null)
    inner_is_plain = is_list(dtype) and not (holds(dtype).is_nested() or holds(dtype) in (pl.Binary, pl.Object))
    problem = None
    if kind == "sequence":
        if dtype.is_nested() and not inner_is_plain:
            problem = "a sequence is a list of texts or numbers, or a text with a splitter"
    elif kind == "embedding":
        if not (inner_is_plain or dtype in (pl.String, pl.Null)):
            problem = "a column of type embedding holds lists of numbers"
    elif dtype.is_nested():
        problem = f"its type is {kind}; give it type: {'embedding' if kind == 'numeric' else 'sequence'}"
    elif kind == "numeric" and not (is_plain or isinstance(dtype, pl.Categorical | pl.Enum)):
        problem = "it is numeric; store it as numbers"
    if not dtype.is_nested() and kind not in ("numeric", "embedding"):
        if dtype in (pl.Duration, pl.Binary, pl.Object):
            problem = "store it as text or as numbers"
        elif not is_plain and col.get("dtype") in NUMBERS:
            problem = "its values are no numbers; give it dtype: str"
    if problem:
        raise UserError(f"column {name!r} of {where} is stored as {dtype}: {problem}")


def unusable(col: Mapping[str, Any], dtype: pl.DataType) -> pl.Expr | None:
    """Whether a row cannot be used; None for columns of which no row can be wrong."""
    value = pl.col(col["name"])
    if dtype == pl.Null and col["type"] in ("numeric", "embedding"):
        return value.is_null()
    if col["type"] == "numeric" and dtype.is_numeric():
        # A normalizer may bring into the range of float32 what is beyond it.
        wide = pl.Float64 if col.get("normalizer") else pl.Float32
        return value.cast(wide).is_finite().fill_null(False).not_()
    if col["type"] == "embedding" and is_list(dtype) and holds(dtype).is_numeric():
        finite = value.arr.to_list().list.eval(pl.element().is_finite().fill_null(False)).list.all()
        return (value.is_not_null() & finite).not_()
    if col["type"] in ("numeric", "embedding"):
        return value.is_not_null()
    return None


def _error_of(col: Mapping[str, Any], row: int, count: int, made: pl.LazyFrame, split: RawSplit) -> UserError:
    name, fill = col["name"], fill_of(col)
    shown = made.slice(row, 1).select(name).collect().item()
    if isinstance(shown, pl.Series):
        shown = shown.to_list()
    if isinstance(shown, str):
        text, where = _first_text(name, made, split)
        return UserError(f"column {name!r} holds the text {text[:40]!r} in {where}; {no_number(col, stored=True)}")
    value = None if col.get("preprocess") else split.value(row, name)
    where = split.where(row, count)
    way_out = f"correct it, or leave it empty (null in parquet), for which fill_na ({fill}) stands"
    if fill is None:
        way_out = "correct it, or set fill_na to the number that stands for a missing one"
    if col["type"] == "embedding":
        return UserError(f"column {name!r} holds {_wrong_vector(col, value, shown)} in {where}; {way_out}")
    if shown is None:
        return UserError(f"column {name!r} is empty in {where}, and its fill_na is null; {way_out}")
    what = f"{shown} (made by preprocess)" if value is None else value
    return UserError(f"column {name!r} holds {what} in {where}, which no model can learn from; {way_out}")


def _first_text(name: str, made: pl.LazyFrame, split: RawSplit) -> tuple[str, str]:
    """The first text that is no number, or the first one, and where it stands."""
    texts = made.with_row_index(ROW).select(ROW, name).filter(pl.col(name).is_not_null())
    no_number = pl.col(name).str.strip_chars().cast(pl.Float64, strict=False).is_null() & (pl.col(name) != "")
    wrong = texts.filter(no_number).head(1).collect(engine="streaming")
    row, text = (wrong if len(wrong) else texts.head(1).collect()).row(0)
    return text, split.where(row)


def _wrong_vector(col: Mapping[str, Any], value: Any, shown: Any) -> str:
    vector = shown if value is None else value
    if vector is None:
        return "no vector (null, as its fill_na)"
    vector = list(vector)
    if any(isinstance(number, str | dict | list) for number in vector):
        return f"{str(vector)[:40]}, no list of numbers,"
    if len(vector) != col["pretrain_dim"]:
        return f"a vector of {len(vector)} numbers (pretrain_dim is {col['pretrain_dim']})"
    largest = float(np.finfo(np.float32).max)
    place = next(i for i, number in enumerate(vector) if number is None or not abs(number) <= largest)
    return f"a vector whose number {place + 1} is {'null' if vector[place] is None else vector[place]}"


def normalizers(params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and normalizer of the numeric columns that have one."""
    for col in _active(params):
        if col["type"] == "numeric" and col.get("normalizer"):
            yield col["name"], col["normalizer"]
