"""Raw values as FuxiCTR's FeatureProcessor takes them (lists, plain types), and the values that stand for missing ones.

A parquet column must give what the same data gives as csv, where a sequence is its values with a splitter between: a
list that is null or empty is an empty cell, and null inside a list is an empty place, which FuxiCTR pads.

Only the raw files distinguish a missing value from the same value written there (`fill_na`, or what a preprocess step
makes of it): in the built data both have one id.
"""

import copy
import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import polars as pl
from typing_extensions import TypeIs

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.host.preprocess import FeatureProcessor

# Between the values of a list, whatever `splitter` says: no value holds it, so that none is cut in two.
SPLITTER = "\x1f\x1e"
TEXT, WHOLE = ("str", str), ("int", int, "str", str)
# What FuxiCTR fills in where a column does not say it.
DEFAULTS = {"str": "", "int": 0, "float": 0.0}
# Value -> [rows in which it stands for a missing one, rows in which it was read].
Counts = dict[str, list[int]]


class TakesLists(FeatureProcessor):
    """`preprocess` of the FeatureProcessor behind it also takes lists, arrays, booleans, decimals and dictionaries."""

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


def is_list(dtype: pl.DataType | None) -> TypeIs[pl.List | pl.Array]:
    """Whether a column of that type holds lists or arrays."""
    return isinstance(dtype, pl.List | pl.Array)


def holds(dtype: pl.List | pl.Array) -> pl.DataType:
    """The type of what its lists or arrays hold."""
    return cast(pl.DataType, dtype.inner)


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
        yield pl.col(name).cast(pl.String)  # a text, which the check of raw files reports


def _converted(
    raw: Mapping[str, pl.DataType], made: Mapping[str, pl.DataType], cols: list[dict[str, Any]]
) -> Iterator[pl.Expr]:
    for col in cols:
        dtype = made.get(col["name"])
        if col["type"] == "sequence" and is_list(dtype) and not holds(dtype).is_nested():
            yield _as_text(col, dtype)
        elif col["type"] == "sequence" and dtype == pl.String and col["name"] not in raw:
            yield pl.col(col["name"]).fill_null(col.get("fill_na", ""))
        elif col["type"] == "numeric" and dtype is not None:
            yield from _as_number(col["name"], dtype)
        elif col["type"] == "embedding" and dtype is not None and _are_vectors(dtype):
            yield _as_array(col, dtype)


def _are_vectors(dtype: pl.DataType) -> bool:
    if is_list(dtype):
        return holds(dtype).is_numeric() or holds(dtype) in (pl.Boolean, pl.Null)
    return dtype == pl.Null  # all of them are missing


def _lists(name: str, dtype: pl.DataType) -> pl.Expr:
    return pl.col(name).arr.to_list() if isinstance(dtype, pl.Array) else pl.col(name)


def _as_text(col: Mapping[str, Any], dtype: pl.List | pl.Array) -> pl.Expr:
    """The values of a list, one after the other."""
    fill, value = col.get("fill_na", ""), pl.element()
    text = value.cast(pl.String)
    if holds(dtype).is_float():
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
    """What stands in for a missing value; None where nothing does."""
    if col["type"] == "embedding":  # a vector of this number
        return col.get("fill_na", 0.0)
    kind = col["dtype"] if isinstance(col["dtype"], str) else col["dtype"].__name__
    return col.get("fill_na", DEFAULTS[kind]) if kind in DEFAULTS else None


def text_of(value: Any) -> str:
    """A value as it stands in feature_vocab.json."""
    return value if isinstance(value, str) else json.dumps(value)


class PlainFills:
    """Counts the values that stand for missing ones in the columns of a raw frame that are read as they are.

    Args:
        processor: its columns say what is filled in.
        raw: the rows of a split.

    Attributes:
        frame, asked: the facts that `counts` needs are what this frame gives for these.
    """

    def __init__(self, processor: FeatureProcessor, raw: pl.LazyFrame):
        columns = [col for col in _with_fills(processor) if not col.get("preprocess")]
        self.frame = raw.with_columns(plain_types(raw.collect_schema(), columns))
        self.asked: list[pl.Expr] = []
        self._fills: dict[str, Any] = {}
        self._problem = ""
        schema = self.frame.collect_schema()
        for col in columns:
            # An empty text is no value of a column in any case.
            if col["name"] in schema and not (fill_of(col) == "" and col["type"] == "categorical"):
                self._ask(col, schema[col["name"]])

    def _ask(self, col: Mapping[str, Any], dtype: pl.DataType) -> None:
        name, fill = col["name"], fill_of(col)
        filled = pl.Series(name, [None], dtype)
        if fill is not None:
            filled = pl.select(filled.fill_null(fill)).to_series()
        if col["type"] == "numeric" and filled.dtype == pl.String:
            self._problem = f"column {name!r} is numeric, and fill_na {fill!r} a text; give a number, or null"
            return
        self._fills[name] = filled.item()
        known = pl.col(name).cast(filled.dtype, strict=False)
        is_nan = known.is_nan().sum() if filled.dtype.is_float() else pl.lit(0)
        such = (known == pl.lit(filled.item(), filled.dtype)).sum()
        asked = {"missing": pl.col(name).null_count(), "such": such, "nan": is_nan}
        self.asked += [part.alias(f"{name}\0{what}") for what, part in asked.items()]

    def counts(self, facts: Mapping[str, int]) -> dict[str, Counts]:
        """By column, those of its values that stand for missing ones.

        Raises:
            UserError: a number would be filled up with a text.
        """
        if self._problem:
            raise UserError(self._problem)
        values_of: dict[str, Counts] = {}
        for name, fill in self._fills.items():
            missing, such, nans = (facts[f"{name}\0{what}"] for what in ("missing", "such", "nan"))
            is_nan = fill != fill
            values = {"NaN": [nans + missing * is_nan, 0]} if nans or (missing and is_nan) else {}
            if missing and fill is not None and not is_nan:
                values[text_of(fill)] = [missing, such]
            if values:
                values_of[name] = values
        return values_of


def _with_fills(processor: FeatureProcessor) -> list[dict[str, Any]]:
    """The columns in which values may stand for missing ones: lists are of texts, and FuxiCTR pads where one is not."""
    kinds = ("categorical", "numeric")
    return [col for col in processor.feature_cols if col.get("active", True) and col["type"] in kinds]


def fills_of_made(
    host: type[FeatureProcessor], processor: FeatureProcessor, frames: Sequence[pl.LazyFrame]
) -> list[dict[str, Counts]]:
    """The same for columns that a preprocess step makes: what it gives more often of filled than of unfilled ones.

    Args:
        host: the processor's class without what we add to it.
        processor: as for `PlainFills`.
        frames: the raw rows of each split.
    """
    by_frame: list[dict[str, Counts]] = [{} for _ in frames]
    names = [col["name"] for col in _with_fills(processor) if col.get("preprocess")]
    if not names:
        return by_frame
    bare, processor = copy.copy(processor), copy.copy(processor)
    bare.feature_cols = [{**col, "fill_na": None} for col in processor.feature_cols]
    bare.label_cols = [{**col, "fill_na": None} for col in processor.label_cols]
    try:
        for counts, frame in zip(by_frame, frames, strict=True):
            filled, unfilled = host.preprocess(processor, frame), host.preprocess(bare, frame)
            (nulls,) = unfilled.select(pl.col(names).null_count()).collect(engine="streaming").to_dicts()
            affected = [name for name in names if nulls[name]]
            tables = pl.collect_all([_more(name, filled, unfilled) for name in affected], engine="streaming")
            for name, table in zip(affected, tables, strict=True):
                counts[name] = {text_of(value): [more, as_such] for value, more, as_such in table.rows()}
    except Exception as error:  # the function may be of any user's
        logging.warning(
            "Which values of %s are missing is not known, as their preprocess functions fail without fill_na: %s",
            ", ".join(names),
            reason_of(error),
        )
    return by_frame


def _more(name: str, filled: pl.LazyFrame, unfilled: pl.LazyFrame) -> pl.LazyFrame:
    """The values that a column has more often when filled: the value, in how many rows more, and in how many others."""
    counts, others = (
        frame.select(pl.col(name).alias("value"))
        .drop_nulls()
        .group_by("value")
        .agg(pl.len().cast(pl.Int64).alias(rows))
        for frame, rows in ((filled, "rows"), (unfilled, "others"))
    )
    # What is filled in may make whole numbers floats.
    others = others.with_columns(pl.col("value").cast(counts.collect_schema()["value"], strict=False))
    both = counts.join(others, on="value", how="left").with_columns(pl.col("others").fill_null(0))
    return both.select("value", pl.col("rows") - pl.col("others"), "others").filter(pl.col("rows") > 0)


def summed(splits: Iterable[Mapping[str, Counts]]) -> dict[str, Counts]:
    """The counts of all splits together, for the values that are missing in one of them."""
    total: dict[str, Counts] = defaultdict(dict)
    for split in splits:
        for name, values in split.items():
            for value, counts in values.items():
                known = total[name].get(value, [0, 0])
                total[name][value] = [before + more for before, more in zip(known, counts, strict=True)]
    return dict(total)


def not_a_number(values: Iterable[str]) -> list[str]:
    """`NaN` among the texts of floats: what is missing in a data set of which nothing else is known."""
    others = [value for value in values if value != "NaN"]
    return ["NaN"] if others and len(others) < len(list(values)) and all(map(is_float, others)) else []


def is_float(value: str) -> bool:
    """Whether a text is a float as FuxiCTR writes it into its vocabulary."""
    return is_number(value) and repr(float(value)) == value


def is_number(value: str) -> bool:
    """Whether a text reads as a number."""
    try:
        float(value)
    except ValueError:
        return False
    return True
