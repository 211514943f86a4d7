"""Columns of parquet as FuxiCTR's FeatureProcessor takes them: sequences as texts, vectors in one width, plain types.

Right is what the same data gives as csv, where a sequence is its values with a splitter between: a list that is null
or empty is an empty cell, and null inside a list is an empty place, which FuxiCTR pads.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

# Between the values of a list, whatever `splitter` says: no value holds it, so that none is cut in two.
SPLITTER = "\x1f\x1e"
TEXT, WHOLE = ("str", str), ("int", int, "str", str)


class TakesLists:
    """Mixed into a FeatureProcessor: `preprocess` also takes lists and arrays, booleans, decimals and dictionaries."""

    feature_cols: list[dict[str, Any]]
    label_cols: list[dict[str, Any]]

    def preprocess(self, ddf: pl.LazyFrame) -> pl.LazyFrame:
        self.feature_cols = [_missing_is_padding(col) for col in self.feature_cols]
        raw, declared = ddf.collect_schema(), self.feature_cols
        ddf = ddf.with_columns(plain_types(raw, [*self.label_cols, *declared]))
        # FuxiCTR fills lists with a text, which fails, and joins them by ^, whatever the splitter is.
        self.feature_cols = [_left_alone(col, raw) for col in declared]
        try:
            ddf = super().preprocess(ddf)
        finally:
            self.feature_cols = declared
        made = ddf.collect_schema()
        joined = {col["name"] for col in declared if col["type"] == "sequence" and is_list(made.get(col["name"]))}
        self.feature_cols = [{**col, "splitter": SPLITTER} if col["name"] in joined else col for col in declared]
        return ddf.with_columns(_converted(raw, made, declared))


def is_list(dtype: pl.DataType | None) -> bool:
    """Whether a column of that type holds lists or arrays."""
    return isinstance(dtype, pl.List | pl.Array)


def _missing_is_padding(col: dict[str, Any]) -> dict[str, Any]:
    """A sequence that is missing has no values: FuxiCTR fails where `fill_na: null` leaves one null."""
    return {**col, "fill_na": ""} if col["type"] == "sequence" and col.get("fill_na", "") is None else col


def _left_alone(col: dict[str, Any], raw: Mapping[str, pl.DataType]) -> dict[str, Any]:
    """The column as FuxiCTR is shown it, where it is or may become a list."""
    if col["type"] not in ("sequence", "embedding"):
        return col
    if col["type"] == "embedding" or col["name"] not in raw or raw[col["name"]].is_nested():
        return {**col, "type": "list", "fill_na": None}
    return {**col, "type": "list"} if col.get("preprocess") else col


def plain_types(raw: Mapping[str, pl.DataType], cols: list[dict[str, Any]]) -> Iterator[pl.Expr]:
    """Columns whose stored type is another than the declared one, and that FuxiCTR cannot fill or count."""
    for col in cols:
        dtype = raw.get(col["name"])
        if dtype is None or dtype.is_nested() or col.get("preprocess"):
            continue
        kind = col.get("type", "numeric")  # a label has none
        if kind == "numeric":
            yield from _as_number(col["name"], dtype)
        elif kind != "embedding" and col["dtype"] in TEXT and dtype != pl.String:
            yield pl.col(col["name"]).cast(pl.String)


def _as_number(name: str, dtype: pl.DataType) -> Iterator[pl.Expr]:
    if dtype == pl.Boolean or dtype.is_decimal():
        yield pl.col(name).cast(pl.Float64)
    elif isinstance(dtype, pl.Categorical | pl.Enum):
        yield pl.col(name).cast(pl.String)  # a text, of which the check tells


def _converted(
    raw: Mapping[str, pl.DataType], made: Mapping[str, pl.DataType], cols: list[dict[str, Any]]
) -> Iterator[pl.Expr]:
    for col in cols:
        dtype = made.get(col["name"])
        if col["type"] == "sequence" and is_list(dtype) and not dtype.inner.is_nested():
            yield _as_text(col, dtype)
        elif col["type"] == "sequence" and dtype == pl.String and col["name"] not in raw:
            yield pl.col(col["name"]).fill_null(col.get("fill_na", ""))
        elif col["type"] == "numeric" and dtype is not None:
            yield from _as_number(col["name"], dtype)
        elif col["type"] == "embedding" and _are_vectors(dtype):
            yield _as_array(col, dtype)


def _are_vectors(dtype: pl.DataType | None) -> bool:
    if is_list(dtype):
        return dtype.inner.is_numeric() or dtype.inner in (pl.Boolean, pl.Null)
    return dtype == pl.Null  # all of them are missing


def _lists(name: str, dtype: pl.DataType) -> pl.Expr:
    return pl.col(name).arr.to_list() if isinstance(dtype, pl.Array) else pl.col(name)


def _as_text(col: Mapping[str, Any], dtype: pl.DataType) -> pl.Expr:
    """The values of a list, one after the other."""
    fill, value = col.get("fill_na", ""), pl.element()
    text = value.cast(pl.String)
    if dtype.inner.is_float():
        # Whole numbers with one missing are stored as floats, by pandas say.
        whole = pl.when(value == value.round()).then(value.cast(pl.Int64, strict=False).cast(pl.String))
        text = pl.when(value.is_not_nan()).then(whole.otherwise(text) if col["dtype"] in WHOLE else text)
    lists = _lists(col["name"], dtype).list.eval(text.fill_null(fill))
    joined = pl.when(lists.list.len() > 0).then(lists.list.join(SPLITTER))
    return joined.otherwise(pl.lit(fill, dtype=pl.String)).alias(col["name"])


def _as_array(col: Mapping[str, Any], dtype: pl.DataType) -> pl.Expr:
    """Vectors `[pretrain_dim]` in float32, which models take; null where the width is another one."""
    width, fill = col["pretrain_dim"], fill_of(col)
    lists = _lists(col["name"], dtype).cast(pl.List(pl.Float32))
    if fill is not None:
        empty = pl.lit([float(fill)] * width, dtype=pl.List(pl.Float32))
        filled = lists.list.eval(pl.element().fill_null(fill))
        lists = pl.when(lists.is_null()).then(empty).otherwise(filled)
    return pl.when(lists.list.len() == width).then(lists).list.to_array(width).alias(col["name"])


def fill_of(col: Mapping[str, Any]) -> Any:
    """What stands in for a number that is missing; None where nothing does."""
    return col.get("fill_na", 0.0)
