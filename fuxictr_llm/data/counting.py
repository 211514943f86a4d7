"""How often the values of train occur, counted by polars in a stream; only the values that get an id become Python's.

FuxiCTR's `fit` counts in a stream too, but then holds every value that occurs, whatever `min_categr_count` is.
"""

from collections.abc import Mapping
from typing import Any

import polars as pl
import psutil

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.host.preprocess import FeatureProcessor

WITH_COUNTS = ("meta", "categorical", "sequence")
# What counts, or makes vocabularies of counts.
COUNTING = ("fit", "_collect_statistics", *(f"fit_{kind}_col" for kind in WITH_COUNTS))
# A text of ten characters, its counts and places in FuxiCTR's dicts and sorted lists.
BYTES_A_VALUE = 300
BYTES_A_CELL = 70  # such a text and a reference to it
NUMBERS = ("min", "max", "mean", "std", "count")


def counts_as_fuxictr(host: type[FeatureProcessor]) -> bool:
    """Whether a FeatureProcessor leaves all of FuxiCTR's counting as it is."""
    return all(getattr(host, name) is getattr(FeatureProcessor, name) for name in COUNTING)


def check_own_counting(host: type[FeatureProcessor], processor: FeatureProcessor, train: pl.LazyFrame) -> None:
    """Before a processor that counts its own way fits: check that what it holds fits in memory.

    FuxiCTR's statistics hold each distinct value. A `fit` of one's own may hold every cell, as nobody knows.

    Args:
        host: the processor's class without what we add to it.
        processor: its columns.
        train: preprocessed.

    Raises:
        UserError: it does not fit.
    """
    columns = [col for col in processor.feature_cols if col.get("active", True)]
    if any(getattr(host, name) is not getattr(FeatureProcessor, name) for name in COUNTING[:2]):
        size = train.select(pl.len()).collect(engine="streaming").item() * len(columns) * BYTES_A_CELL
    else:
        distinct = [_values(col, train).approx_n_unique().alias(col["name"]) for col in columns if _is_counted(col)]
        size = sum(train.select(distinct).collect(engine="streaming").row(0)) * BYTES_A_VALUE if distinct else 0
    way_out = f"leave {', '.join(COUNTING)} of {host.__name__} as FuxiCTR has them, for what polars counts in a stream"
    check_fits(size, way_out)


def check_fits(size: int, way_out: str) -> None:
    """Check that values of `size` bytes fit in the memory that is free now.

    Raises:
        UserError: they do not.
    """
    free = psutil.virtual_memory().available
    if size > free:
        needed = f"about {size / 2**30:.1f} GiB for the values of train, and {free / 2**30:.1f} GiB are free"
        raise UserError(f"the vocabularies need {needed}; {way_out}, or take a machine with more memory")


class CountsInStream(FeatureProcessor):
    """Mixed into a FeatureProcessor that counts as FuxiCTR's."""

    NOT_PICKLED = ("_least",)
    feature_cols: list[dict[str, Any]]

    def fit(self, *args: Any, min_categr_count: int = 1, **kwargs: Any) -> None:
        self._least = min_categr_count
        super().fit(*args, min_categr_count=min_categr_count, **kwargs)

    def _collect_statistics(
        self, train_ddf: pl.LazyFrame, meta_ddf: pl.LazyFrame | None = None
    ) -> dict[str, dict[str, Any]]:
        """What FuxiCTR's method gives, without the counts of values that are too rare for an id."""
        columns = [col for col in self.feature_cols if col.get("active", True)]
        counted = [col for col in columns if _is_counted(col)]
        metas = train_ddf if meta_ddf is None else meta_ddf
        asked = [_counts(col, metas if col["type"] == "meta" else train_ddf, self._fewest(col)) for col in counted]
        facts = [*_longest(counted), *_numbers(columns)]
        if facts:
            asked.append(train_ddf.select(facts))
        also = self._also_asked(train_ddf)
        tables = pl.collect_all([*also, *asked], engine="streaming")[len(also) :] if also or asked else []
        of_columns = tables.pop().row(0, named=True) if facts else {}
        check_fits(sum(map(len, tables)) * BYTES_A_VALUE, "give columns a larger min_categr_count")
        tables.reverse()
        statistics: dict[str, dict[str, Any]] = {}
        for col in counted:
            table = tables.pop()  # one column after the other, so that few are held twice
            values = dict(zip(table["value"].to_list(), table["rows"].to_list(), strict=True))
            statistics[col["name"]] = {"value_counts": values}
        for name, value in of_columns.items():
            column, fact = name.rsplit("::", 1)
            statistics.setdefault(column, {})[fact] = value
        return statistics

    def _also_asked(self, train_ddf: pl.LazyFrame) -> list[pl.LazyFrame]:
        """What is to be done in the same pass over train."""
        return []

    def _fewest(self, col: Mapping[str, Any]) -> int:
        """Rows that a value needs; 1 where a rarer one can have an id, that of another column or of a file."""
        shared = {other.get("share_embedding") for other in self.feature_cols}
        if col["type"] == "meta" or "share_embedding" in col or "pretrained_emb" in col or col["name"] in shared:
            return 1
        return col.get("min_categr_count", self._least)


def _is_counted(col: Mapping[str, Any]) -> bool:
    return col["type"] in WITH_COUNTS and col.get("remap", True)


def _values(col: Mapping[str, Any], frame: pl.LazyFrame) -> pl.Expr:
    values = pl.col(col["name"])
    if col["type"] == "sequence":
        return values.str.split(col.get("splitter", "^")).explode(empty_as_null=False)
    if frame.collect_schema()[col["name"]].is_float():
        return pl.when(values == 0).then(0.0).otherwise(values)  # FuxiCTR writes -0.0 as 0.0, which it equals
    return values


def _counts(col: Mapping[str, Any], frame: pl.LazyFrame, fewest: int) -> pl.LazyFrame:
    values = frame.select(_values(col, frame).alias("value")).drop_nulls()
    counts = values.group_by("value").agg(pl.len().alias("rows"))
    return counts.filter(pl.col("rows") >= fewest) if fewest > 1 else counts


def _longest(columns: list[dict[str, Any]]) -> list[pl.Expr]:
    """The length of the longest sequence of each column that does not say it."""
    return [
        pl.col(col["name"]).str.split(col.get("splitter", "^")).list.len().max().alias(f"{col['name']}::max_len")
        for col in columns
        if col["type"] == "sequence" and not col.get("max_len", 0)
    ]


def _numbers(columns: list[dict[str, Any]]) -> list[pl.Expr]:
    """What normalizers are made of."""
    parts: list[pl.Expr] = []
    for col in columns:
        if col["type"] == "numeric" and "normalizer" in col:
            values = pl.col(col["name"]).drop_nulls()
            made = (values.min(), values.max(), values.mean(), values.std(ddof=0), values.count())
            parts += [part.alias(f"{col['name']}::{fact}") for part, fact in zip(made, NUMBERS, strict=True)]
    return parts
