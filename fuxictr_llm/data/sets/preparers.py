"""The data sets that `prepare:` can name, and how the csv files of each are made."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from fuxictr_llm.data.downloads import Download
from fuxictr_llm.data.sets import amazon, movielens, movietweetings, xwines

AFFECTS_RESULTS = False  # see common/code_digest.py

Tables = Mapping[str, Iterable[pl.DataFrame]]
BY_TIME = {"timestamp": "bucketed"}
EITHER_SPLIT = {"prepare_split": "random"}
MOVIELENS = {"movielens100k": None, "movielens100k_seq": "item_history", "movielens100k_mtl": "label_5"}


@dataclass(frozen=True)
class Preparer:
    """How the csv files of a data set are made.

    Attributes:
        originals: the names of the files that it reads from `raw_data`.
        keys: the config keys that it follows, and their defaults.
        tables: settings and original files -> the rows of each split, in tables that follow each other.
        published: where each original is published, by its name: downloaded where `raw_data` is null.
        downloads: whether `tables` gets the originals itself where `raw_data` is null.
    """

    originals: tuple[str, ...]
    keys: Mapping[str, Any]
    tables: Callable[[Mapping[str, Any], Mapping[str, Path]], Tables]
    published: Mapping[str, Download] = field(default_factory=dict)
    downloads: bool = False


def _movielens100k(params: Mapping[str, Any], _: Mapping[str, Path], adds: str | None = None) -> Tables:
    tables = movielens.prepare_100k(params.get("prepare_split", "random"), params.get("raw_data"), adds)
    return {split: [pl.from_pandas(table)] for split, table in tables.items()}


def _movielens1m(params: Mapping[str, Any], files: Mapping[str, Path]) -> Tables:
    return movielens.prepare_1m(files, params.get("timestamp", "bucketed"))


def _amazon(params: Mapping[str, Any], files: Mapping[str, Path]) -> Tables:
    reviews, items = files.values()
    return amazon.prepare(reviews, items, params.get("timestamp", "bucketed"))


def _movietweetings(params: Mapping[str, Any], files: Mapping[str, Path]) -> Tables:
    return movietweetings.prepare(files, params.get("prepare_split", "random"))


def _xwines(params: Mapping[str, Any], files: Mapping[str, Path]) -> Tables:
    return xwines.prepare(files[xwines.ARCHIVE], params.get("prepare_split", "random"))


PREPARERS = {
    **{
        name: Preparer(movielens.ORIGINALS_100K, EITHER_SPLIT, partial(_movielens100k, adds=adds), downloads=True)
        for name, adds in MOVIELENS.items()
    },
    "movielens1m": Preparer(tuple(movielens.COLUMNS_1M), BY_TIME, _movielens1m),
    **{name: Preparer(amazon.originals(name), BY_TIME, _amazon) for name in amazon.CATEGORIES},
    "movietweetings": Preparer(
        tuple(movietweetings.ORIGINALS), EITHER_SPLIT, _movietweetings, movietweetings.ORIGINALS
    ),
    "xwines": Preparer(tuple(xwines.ORIGINALS), EITHER_SPLIT, _xwines, xwines.ORIGINALS),
}
