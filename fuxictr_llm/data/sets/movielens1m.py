"""MovieLens-1M (GroupLens) as csv for FuxiCTR: one row a rating, in the form that LLaCTR uses.

8 fields, label rating > 3, ratings of 3 left out, 8:1:1 in the order of time (stable). A movie's genres are one
category.
"""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from fuxictr_llm.data.sets.originals import damaged_line, numbered_lines, tenths, time_words

COLUMNS = {
    "ratings.dat": ["UserID", "MovieID", "Rating", "Timestamp"],
    "users.dat": ["UserID", "Gender", "Age", "Occupation", "Zip-code"],
    "movies.dat": ["MovieID", "Title", "Genres"],
}
FIELDS = ["UserID", "Gender", "Age", "Occupation", "MovieID", "Title", "Genres", "Timestamp"]
NUMBERS = {"Rating", "Timestamp"}


def prepare(files: Mapping[str, Path], timestamp: str) -> dict[str, list[pl.DataFrame]]:
    """The rows of train, valid and test.

    Args:
        files: ratings.dat, users.dat and movies.dat by these names.
        timestamp: `bucketed` or `raw`.

    Raises:
        UserError: a line of a file is damaged, or there are less than ten ratings.
    """
    ratings, users, movies = (_read(files[name], columns) for name, columns in COLUMNS.items())
    rows = ratings.filter(pl.col("Rating") != 3).sort("Timestamp", maintain_order=True)
    for others, key in ((users, "UserID"), (movies, "MovieID")):  # of a key that stands twice the first line counts
        others = others.unique(key, keep="first", maintain_order=True)
        rows = rows.join(others, on=key, how="left", maintain_order="left")
    table = rows.with_columns(
        time_words("Timestamp", "s", timestamp),
        pl.col("Genres").str.replace_all("|", ", ", literal=True),
        label=(pl.col("Rating") > 3).cast(pl.Int8),
    ).select("label", *FIELDS)
    return {split: [table[part]] for split, part in tenths(len(table), str(files["ratings.dat"])).items()}


def _read(path: Path, columns: list[str]) -> pl.DataFrame:
    """The lines of a file in Latin-1, their parts separated by `::`."""
    values: list[list] = [[] for _ in columns]
    for number, line in numbered_lines(path, "latin-1"):
        parts = line.split("::")
        if len(parts) != len(columns):
            damaged_line(path, number, f"it must be {'::'.join(columns)}")
        for name, part, column in zip(columns, parts, values, strict=True):
            if name in NUMBERS and not (part.isdecimal() and len(part) <= 15):
                damaged_line(path, number, f"{name} must be a whole number (got {part!r})")
            column.append(int(part) if name in NUMBERS else part)
    schema = {name: pl.Int64 if name in NUMBERS else pl.String for name in columns}
    return pl.DataFrame(dict(zip(columns, values, strict=True)), schema)
