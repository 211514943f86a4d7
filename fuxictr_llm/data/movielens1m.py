"""MovieLens-1M (GroupLens) as csv for FuxiCTR: one row a rating, in the form that LLaCTR uses.

8 fields, label rating > 3, ratings of 3 left out, 8:1:1 in the order of time (stable). A movie's genres are one
category.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from fuxictr_llm.data.originals import damaged_line, numbered_lines, tenths, time_words

COLUMNS = {
    "ratings.dat": ["UserID", "MovieID", "Rating", "Timestamp"],
    "users.dat": ["UserID", "Gender", "Age", "Occupation", "Zip-code"],
    "movies.dat": ["MovieID", "Title", "Genres"],
}
FIELDS = ["UserID", "Gender", "Age", "Occupation", "MovieID", "Title", "Genres", "Timestamp"]
NUMBERS = {"Rating", "Timestamp"}


def prepare(files: Mapping[str, Path], timestamp: str) -> dict[str, list[pd.DataFrame]]:
    """The rows of train, valid and test.

    Args:
        files: ratings.dat, users.dat and movies.dat by these names.
        timestamp: `bucketed` or `raw`.

    Raises:
        UserError: a line of a file is damaged, or there are less than ten ratings.
    """
    ratings, users, movies = (_read(files[name], columns) for name, columns in COLUMNS.items())
    rows = ratings[ratings["Rating"] != 3]
    rows = rows.iloc[np.argsort(rows["Timestamp"].to_numpy(), kind="stable")]
    rows = rows.merge(users, on="UserID", how="left").merge(movies, on="MovieID", how="left")
    table = rows[FIELDS].assign(
        Genres=rows["Genres"].str.replace("|", ", "), Timestamp=time_words(rows["Timestamp"], "s", timestamp)
    )
    table.insert(0, "label", (rows["Rating"] > 3).astype(int))
    table = table.fillna("")
    parts = tenths(len(table), str(files["ratings.dat"]))
    return {split: [table.iloc[part]] for split, part in parts.items()}


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    """The lines of a file in Latin-1, their parts separated by `::`; the first line of a user or movie counts."""
    values: list[list] = [[] for _ in columns]
    for number, line in numbered_lines(path, "latin-1"):
        parts = line.split("::")
        if len(parts) != len(columns):
            damaged_line(path, number, f"it must be {'::'.join(columns)}")
        for name, part, column in zip(columns, parts, values, strict=True):
            if name in NUMBERS and not part.isdecimal():
                damaged_line(path, number, f"{name} must be a whole number (got {part!r})")
            column.append(int(part) if name in NUMBERS else part)
    table = pd.DataFrame(dict(zip(columns, values, strict=True)))
    return table if "Rating" in columns else table.drop_duplicates(columns[0])
