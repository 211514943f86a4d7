"""X-Wines, Slim version, as csv for FuxiCTR: one row a rating with its wine, split 8:1:1.

Label: rating >= 4 of 5. Thirteen fields say what a wine is; `age` is that of the wine when it was rated. A vintage of 0
is a wine without one (N.V.).
Licence CC0 1.0. Source: de Azambuja, Morais, Filipe, "X-Wines: a wine dataset for recommender systems and machine
learning", Big Data and Cognitive Computing 7(1):20, 2023; https://github.com/rogerioxavier/X-Wines.
"""

import ast
import zipfile
from pathlib import Path

import polars as pl

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.data.downloads import Download
from fuxictr_llm.data.sets import split_order, tenths

ARCHIVE = "XWines_Slim_1K_wines_150K_ratings.zip"
URL = "https://raw.githubusercontent.com/rogerioxavier/X-Wines/6082668ce552912497a8ec0836655497502e383f/Dataset/last/"
ORIGINALS = {
    ARCHIVE: Download(URL + ARCHIVE, "6ffd494e53eb4098b0e9cf38ffac6322967d6b0b8b5106a833f482bd58db9ebf", "CC0 1.0")
}
RATINGS, WINES = "XWines_Slim_150K_ratings.csv", "XWines_Slim_1K_wines.csv"
OF_A_RATING = ("UserID", "WineID", "Vintage", "Rating", "Date")
# The columns of a wine, and what they are called here.
OF_A_WINE = {
    "WineName": "wine_name",
    "WineryName": "winery",
    "Country": "country",
    "RegionName": "region",
    "Type": "wine_type",
    "Elaborate": "blend",
    "Grapes": "grapes",
    "Harmonize": "food",
    "ABV": "alcohol",
    "Body": "body",
    "Acidity": "acidity",
}
FIELDS = ("user_id", "item_id", *OF_A_WINE.values(), "vintage", "age", "month", "weekday")
LIKED = 4
NO_VINTAGE = "N.V."


def prepare(archive: Path, split: str) -> dict[str, list[pl.DataFrame]]:
    """The rows of train, valid and test.

    Args:
        archive: the published zip file.
        split: `random` with a fixed seed, or `time`: in the order of the ratings.

    Raises:
        UserError: the file is cut or of another form, a rating's wine is not known, or there are less than ten ratings.
    """
    ratings = _read(archive, RATINGS, OF_A_RATING)
    wines = _read(archive, WINES, ("WineID", *OF_A_WINE)).unique("WineID", keep="first")
    wines = wines.with_columns(_joined(archive, wines, name) for name in ("Grapes", "Harmonize")).rename(OF_A_WINE)
    rating = _parsed(archive, ratings, "Rating", pl.col("Rating").cast(pl.Float64, strict=False))
    vintage = _parsed(archive, ratings, "Vintage", pl.col("Vintage").cast(pl.Int32, strict=False))
    date = _parsed(archive, ratings, "Date", pl.col("Date").str.to_datetime("%Y-%m-%d %H:%M:%S", strict=False))
    if len(unknown := ratings.join(wines, on="WineID", how="anti")):
        raise _other_file(archive, f"{WINES} lacks the wine {unknown['WineID'][0]!r} of {RATINGS}")
    years = (date.dt.year() - vintage).clip(0).cast(pl.String)
    table = ratings.select(
        "WineID",
        label=(rating >= LIKED).cast(pl.Int8),
        user_id="UserID",
        vintage=pl.Series(vintage.cast(pl.String)).replace("0", NO_VINTAGE),
        age=pl.Series(years).set(vintage == 0, NO_VINTAGE),
        month=date.dt.strftime("%B"),
        weekday=date.dt.strftime("%A"),
    )
    table = table.join(wines, on="WineID", how="left", maintain_order="left").rename({"WineID": "item_id"})
    table = table.select("label", *FIELDS)[split_order(split, date.to_physical().to_numpy())]
    return {part: [table[where]] for part, where in tenths(len(table), str(archive)).items()}


def _read(archive: Path, member: str, columns: tuple[str, ...]) -> pl.DataFrame:
    """Columns of a csv file in the archive, as text."""
    try:
        with zipfile.ZipFile(archive) as files:
            table = pl.read_csv(files.read(member), infer_schema=False)
    except KeyError as error:
        raise _other_file(archive, f"it lacks {member}") from error
    except (zipfile.BadZipFile, zipfile.LargeZipFile, EOFError, OSError, pl.exceptions.PolarsError) as error:
        raise _other_file(archive, f"{member} cannot be read ({reason_of(error)})") from error
    if missing := [name for name in columns if name not in table.columns]:
        raise _other_file(archive, f"{member} lacks the column {missing[0]!r} (it must be separated by commas)")
    if empty := [name for name in columns if table[name].null_count()]:
        raise _other_file(archive, f"{member} has rows without {empty[0]!r}")
    return table.select(columns)


def _parsed(archive: Path, ratings: pl.DataFrame, name: str, values: pl.Expr) -> pl.Series:
    parsed = ratings.select(values).to_series()
    if parsed.null_count():
        wrong = ratings[name].filter(parsed.is_null())[0]
        raise _other_file(archive, f"{RATINGS} has the {name} {wrong!r}")
    return parsed


def _joined(archive: Path, wines: pl.DataFrame, name: str) -> pl.Series:
    """Lists as Python writes them become what FuxiCTR splits at `^`."""
    joined = []
    for text in wines[name]:
        try:
            parts = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError) as error:  # the last two: nested too deeply
            shown = f"{text[:60]}..." if len(text) > 60 else text
            raise _other_file(archive, f"{WINES} has the {name} {shown!r}") from error
        joined.append("^".join(map(str, parts)) if isinstance(parts, list) else str(parts))
    return pl.Series(name, joined)


def _other_file(archive: Path, problem: str) -> UserError:
    return UserError(f"{str(archive)!r} is cut or another file: {problem}; download it again from {URL}{ARCHIVE}")
