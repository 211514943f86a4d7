"""Amazon Reviews 2023 (Hou et al., 2024) as csv for FuxiCTR: one row a review, with what is known of its item.

The data sets of LLaCTR: 13 fields, label rating >= 4, 8:1:1 in the order of time (stable). `title` is the item's:
a review's own title would tell its rating. A list or mapping is joined into one text, and white space, line
breaks too, becomes one space. `average_rating` and `rating_number` are of all time, as published: they have seen the
ratings of valid and test. An item without metadata has empty texts, and a later entry of an item is ignored.
"""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from fuxictr_llm.common.progress import Progress
from fuxictr_llm.data.sets import damaged_line, numbered_lines, tenths, time_words

CATEGORIES = {"amazon_gift": "Gift_Cards", "amazon_music": "Digital_Music", "amazon_game": "Video_Games"}
OF_THE_ITEM = (
    *("main_category", "title", "average_rating", "rating_number", "features", "description", "price"),
    *("store", "categories", "details"),
)
FIELDS = ("parent_asin", "user_id", "timestamp", *OF_THE_ITEM)
REVIEW = {"parent_asin": pl.String, "user_id": pl.String, "timestamp": pl.Int64, "label": pl.Int8}
CHUNK = 100_000
LATEST = 2**53  # what a JSON number holds exactly, in milliseconds far in the future


def originals(name: str) -> tuple[str, str]:
    """The names of the files of reviews and of items."""
    return f"{CATEGORIES[name]}.jsonl", f"meta_{CATEGORIES[name]}.jsonl"


def prepare(reviews: Path, items: Path, timestamp: str) -> dict[str, Iterator[pl.DataFrame]]:
    """The rows of train, valid and test, in tables of at most `CHUNK` rows.

    In memory are the texts of all items and, while they are sorted, some 250 bytes a review.

    Args:
        reviews: the file of reviews, plain or `.gz`.
        items: the file of the items' metadata.
        timestamp: `bucketed` or `raw`.

    Raises:
        UserError: a file is cut, or a line of it is damaged or lacks something.
    """
    known = _items(items)
    rows = _reviews(reviews).sort("timestamp", maintain_order=True)
    without = len(rows.join(known, on="parent_asin", how="anti"))
    logging.info("%d reviews of %d items; %d reviews have no item", len(rows), len(known), without)
    return {
        split: _tables(split, rows[part], known, timestamp) for split, part in tenths(len(rows), str(reviews)).items()
    }


def _tables(split: str, rows: pl.DataFrame, items: pl.DataFrame, timestamp: str) -> Iterator[pl.DataFrame]:
    with Progress(f"writing {split}", len(rows)) as progress:
        for part in rows.iter_slices(CHUNK):
            table = part.join(items, on="parent_asin", how="left", maintain_order="left")
            yield table.with_columns(time_words("timestamp", "ms", timestamp)).select("label", *FIELDS)
            progress.update(len(part))


def _reviews(path: Path) -> pl.DataFrame:
    parts, part = [], []
    for number, review in _records(path):
        try:
            item, user, time, rating = (review[key] for key in ("parent_asin", "user_id", "timestamp", "rating"))
            if not (item and user and 0 <= int(time) < LATEST and float(rating) >= 0):
                raise ValueError(f"got {(item, user, time, rating)}")
            part.append((str(item), str(user), int(time), int(float(rating) >= 4)))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            damaged_line(path, number, f"it needs parent_asin, user_id, timestamp and rating ({error!r})")
        if len(part) == CHUNK:
            parts.append(pl.DataFrame(part, REVIEW, orient="row"))
            part = []
    return pl.concat([*parts, pl.DataFrame(part, REVIEW, orient="row")])


def _items(path: Path) -> pl.DataFrame:
    names = ("parent_asin", *OF_THE_ITEM)
    columns: dict[str, list[str]] = {name: [] for name in names}
    for number, item in _records(path):
        if not item.get("parent_asin"):
            damaged_line(path, number, "it needs parent_asin")
        for name in names:
            columns[name].append(as_text(item.get(name)))
    schema = dict.fromkeys(names, pl.String)
    return pl.DataFrame(columns, schema).unique("parent_asin", keep="first", maintain_order=True)


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in numbered_lines(path):
        try:
            record = json.loads(line)
        except ValueError as error:
            damaged_line(path, number, f"it is not JSON ({error})")
        if not isinstance(record, dict):
            damaged_line(path, number, "it is no JSON object")
        yield number, record


def as_text(value: Any) -> str:
    """One line of text for any JSON value; parts of a list or mapping are separated by `; `."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return "; ".join(f"{as_text(key)}: {as_text(part)}" for key, part in value.items())
    if isinstance(value, list):
        return "; ".join(filter(None, map(as_text, value)))
    # JSON can hold half of a surrogate pair, UTF-8 cannot.
    return " ".join(str(value).split()).encode("utf-8", "replace").decode("utf-8")
