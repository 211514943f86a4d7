"""MovieTweetings, snapshot of 100,000 ratings, as csv for FuxiCTR: one row a rating, split 8:1:1.

Label: rating >= 8 of 10. A movie is known by its id of IMDb; the Twitter names of users (users.dat) are not read.
MIT licence. Source: Dooms, De Pessemier, Martens, "MovieTweetings: a movie rating dataset collected from Twitter",
CrowdRec at RecSys 2013; https://github.com/sidooms/MovieTweetings.
"""

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.data.downloads import Download
from fuxictr_llm.data.sets import read_double_colons, split_order, tenths

AT = "https://raw.githubusercontent.com/sidooms/MovieTweetings/4d8280a3f1ea83e3e23f13d1710d19f43564274f/snapshots/100K/"
ORIGINALS = {
    "ratings.dat": Download(
        AT + "ratings.dat", "c0dd868c2632d10002ebc928ddc5345f33adeaa59eca52c2941c26a2c5e36fd6", "MIT"
    ),
    "movies.dat": Download(
        AT + "movies.dat", "e63fb84bc734e3c574f135634a40d3cbafab22b8f94f5fc0b80f80d1d2076efc", "MIT"
    ),
}
LIKED = 8
FIELDS = ("user_id", "item_id", "hour", "weekday", "movie_title", "release_year", "genres")


def prepare(files: Mapping[str, Path], split: str) -> dict[str, list[pl.DataFrame]]:
    """The rows of train, valid and test.

    Args:
        files: ratings.dat and movies.dat by these names.
        split: `random` with a fixed seed, or `time`: in the order of the ratings.

    Raises:
        UserError: a file is cut or of another form, a rating's movie is not known, or there are less than ten ratings.
    """
    ratings_file, movies_file = files["ratings.dat"], files["movies.dat"]
    ratings = _read(ratings_file, ("user_id", "item_id", "rating", "timestamp"), {"rating", "timestamp"})
    movies = _read(movies_file, ("item_id", "titled", "genres"), set()).unique("item_id", keep="first")
    if len(unknown := ratings.join(movies, on="item_id", how="anti")):
        raise UserError(
            f"{str(movies_file)!r} lacks the movie {unknown['item_id'][0]!r} of {str(ratings_file)!r}: one of them "
            f"is cut or of another snapshot; download both again from {AT}"
        )
    rows = ratings.join(movies, on="item_id", how="left", maintain_order="left")
    time = pl.from_epoch("timestamp", "s")
    table = rows.select(
        label=(pl.col("rating") >= LIKED).cast(pl.Int8),
        user_id="user_id",
        item_id="item_id",
        hour=time.dt.hour().cast(pl.String),
        weekday=time.dt.strftime("%A"),
        movie_title=pl.col("titled").str.replace(r"\s*\(\d{4}\)$", ""),
        release_year=pl.col("titled").str.extract(r"\((\d{4})\)$").fill_null(""),
        genres=pl.col("genres").str.replace_all("|", "^", literal=True),
    )[split_order(split, rows["timestamp"].to_numpy())]
    return {part: [table[where]] for part, where in tenths(len(table), str(ratings_file)).items()}


def _read(path: Path, columns: tuple[str, ...], numbers: set[str]) -> pl.DataFrame:
    if path.suffix != ".gz" and path.stat().st_size and not path.read_bytes().endswith(b"\n"):
        raise UserError(f"{str(path)!r} is cut: its last line has no end; download it again from {AT}{path.name}")
    return read_double_colons(path, columns, numbers)
