"""MovieLens (GroupLens) as csv for FuxiCTR: one row a rating, split 8:1:1.

100K: label rating >= 4; two more forms add a column: `item_history`, what the user rated before, and `label_5`,
rating = 5. 1M: in the form that LLaCTR uses: 8 fields, label rating > 3, ratings of 3 left out, in the order of time
(stable); a movie's genres are one category.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.data.assets import asset_dir
from fuxictr_llm.data.sets import read_double_colons, split_order, tenths, time_words

# So many movies are in a history at most.
HISTORY = 50
# GroupLens's own files, as they may stand in `raw_data`; of 1M with the columns of each.
ORIGINALS_100K = ("u.data", "u.item", "u.user")
# The order of the genre flags in GroupLens's u.item, which says "unknown" first.
GENRES = ["unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama"]
GENRES += ["Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"]
COLUMNS_1M = {
    "ratings.dat": ["UserID", "MovieID", "Rating", "Timestamp"],
    "users.dat": ["UserID", "Gender", "Age", "Occupation", "Zip-code"],
    "movies.dat": ["MovieID", "Title", "Genres"],
}
FIELDS_1M = ["UserID", "Gender", "Age", "Occupation", "MovieID", "Title", "Genres", "Timestamp"]
NUMBERS_1M = {"Rating", "Timestamp"}


def prepare_100k(split: str, raw_data: str | None, adds: str | None = None) -> dict[str, pd.DataFrame]:
    """The rows of train, valid and test, 8:1:1.

    Args:
        split: `random` with a fixed seed, or `time`: in the order of the ratings.
        raw_data: a folder with GroupLens's own u.data, u.item and u.user; None downloads.
        adds: a column of `ADDED`.

    Raises:
        UserError: the folder lacks a file, or there is no network and nothing cached.
    """
    ratings, items, users = _packaged() if raw_data is None else _original(Path(raw_data))
    rows = ratings.merge(users, on="user_id", how="left").merge(items, on="item_id", how="left")
    order = split_order(split, rows["timestamp"].to_numpy())
    columns = _columns(rows)
    if adds:
        columns[adds] = ADDED[adds](rows)
    columns = columns.iloc[order]
    return {part: columns.iloc[rows] for part, rows in tenths(len(columns), "MovieLens-100K").items()}


def _columns(rows: pd.DataFrame) -> pd.DataFrame:
    time = pd.to_datetime(rows["timestamp"], unit="s", utc=True)
    age = rows["age"].astype(int) // 5 * 5
    return pd.DataFrame(
        {
            "label": (rows["rating"] >= 4).astype(int),
            "user_id": rows["user_id"],
            "item_id": rows["item_id"],
            "age": age.astype(str) + "-" + (age + 4).astype(str),
            "gender": rows["gender"],
            "occupation": rows["occupation"],
            "zip_code": rows["zip_code"].str[:3],
            "hour": time.dt.hour.astype(str),
            "weekday": time.dt.day_name(),
            "movie_title": rows["movie_title"],
            "release_year": rows["release_year"],
            "genres": rows["genres"],
        }
    )


def _history(rows: pd.DataFrame) -> list[str]:
    """For each row the movies that its user rated at earlier seconds, the latest last."""
    histories = [""] * len(rows)
    for positions in rows.groupby("user_id", sort=False).indices.values():
        times = rows["timestamp"].to_numpy()[positions]
        order = np.argsort(times, kind="stable")
        items = rows["item_id"].to_numpy()[positions[order]]
        for position, before in zip(positions[order], np.searchsorted(times[order], times[order]), strict=True):
            histories[position] = "^".join(items[max(0, before - HISTORY) : before])
    return histories


def _rated_5(rows: pd.DataFrame) -> pd.Series:
    return (rows["rating"] == 5).astype(int)


ADDED = {"item_history": _history, "label_5": _rated_5}


def _packaged() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Read RecBole's copy: tab-separated, headers `name:type`."""
    folder = asset_dir("movielens100k")

    def read(part: str) -> pd.DataFrame:
        table = pd.read_csv(folder / f"ml-100k.{part}", sep="\t", dtype=str, keep_default_na=False, quoting=3)
        return table.rename(columns=lambda name: name.split(":")[0])

    ratings = read("inter").astype({"rating": float, "timestamp": float})
    items = read("item").rename(columns={"class": "genres"})
    items["genres"] = items["genres"].str.replace(" ", "^")
    return ratings, items, read("user")


def _original(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Read GroupLens's own files: u.data by tabs, u.item and u.user by bars, in Latin-1."""
    missing = [name for name in ORIGINALS_100K if not (folder / name).is_file()]
    if missing:
        raise UserError(f"raw_data folder {str(folder)!r} lacks {', '.join(missing)} of GroupLens's ml-100k")

    def read(name: str, columns: list[str], sep: str = "|") -> pd.DataFrame:
        return pd.read_csv(
            folder / name, sep=sep, names=columns, dtype=str, keep_default_na=False, quoting=3, encoding="latin-1"
        )

    ratings = read("u.data", ["user_id", "item_id", "rating", "timestamp"], sep="\t")
    ratings = ratings.astype({"rating": float, "timestamp": float})
    items = read("u.item", ["item_id", "titled", "released", "video", "url", *GENRES])
    named = items["titled"].str.extract(r"^(?P<movie_title>.*?)\s*(?:\((?P<release_year>\d{4})\))?$").fillna("")
    flags = items[GENRES].to_numpy() == "1"
    named["genres"] = ["^".join(np.array(GENRES)[row]) for row in flags]
    named["item_id"] = items["item_id"]
    return ratings, named, read("u.user", ["user_id", "age", "gender", "occupation", "zip_code"])


def prepare_1m(files: Mapping[str, Path], timestamp: str) -> dict[str, list[pl.DataFrame]]:
    """The rows of train, valid and test.

    Args:
        files: ratings.dat, users.dat and movies.dat by these names.
        timestamp: `bucketed` or `raw`.

    Raises:
        UserError: a line of a file is damaged, or there are less than ten ratings.
    """
    ratings, users, movies = (
        read_double_colons(files[name], columns, NUMBERS_1M, "latin-1") for name, columns in COLUMNS_1M.items()
    )
    rows = ratings.filter(pl.col("Rating") != 3).sort("Timestamp", maintain_order=True)
    for others, key in ((users, "UserID"), (movies, "MovieID")):  # of a key that stands twice the first line counts
        others = others.unique(key, keep="first", maintain_order=True)
        rows = rows.join(others, on=key, how="left", maintain_order="left")
    table = rows.with_columns(
        time_words("Timestamp", "s", timestamp),
        pl.col("Genres").str.replace_all("|", ", ", literal=True),
        label=(pl.col("Rating") > 3).cast(pl.Int8),
    ).select("label", *FIELDS_1M)
    return {split: [table[part]] for split, part in tenths(len(table), str(files["ratings.dat"])).items()}
