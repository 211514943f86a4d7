"""MovieTweetings and X-Wines from small made files of the published form: columns, splits, damaged and missing files."""

import gzip
import json
import zipfile
from datetime import date, timedelta
from pathlib import Path

import pandas as pd
import pytest

from fuxictr_llm.__main__ import main
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.build import built_data
from fuxictr_llm.data.field_words import read_field_config
from fuxictr_llm.data.prepare import prepare_raw_data
from fuxictr_llm.data.sets import xwines
from fuxictr_llm.data.sets.preparers import PREPARERS

SPLITS = ("train", "valid", "test")
START = 1_364_774_400  # Monday, 1 April 2013, 0:00 UTC
MOVIES = [
    "0000001::Fantômas: À l'ombre (1913)::Crime|Drama",
    "0000002::Up (2009)::",
    "1234567::1984 (1984)::Sci-Fi",
]
WINES = "WineID,WineName,Type,Elaborate,Grapes,Harmonize,ABV,Body,Acidity,Code,Country,RegionName,WineryID,WineryName"
WINE_LINES = [
    "100001,\"Espumante, Moscatel\",Sparkling,Varietal/100%,['Muscat/Moscato'],\"['Pork', 'Rich Fish']\",7.5,"
    "Medium-bodied,High,BR,Brazil,Serra Gaúcha,10001,Casa Perini",
    '100002,Rosso,Red,Assemblage/Blend,"[""Trebbiano D\'Abruzzo"", \'Merlot\']",[\'Pizza\'],13.0,Full-bodied,Low,IT,Italy,'
    "Toscana,10002,Rossi",
]


def rating_lines(count=40):
    times = [START + 3600 * ((7 * i) % count // 2) for i in range(count)]  # out of order, and each time twice
    ids = [line[:7] for line in MOVIES]
    return [f"{1 + i % 4}::{ids[i % 3]}::{i % 11}::{times[i]}" for i in range(count)]


def write_tweets(folder, ratings=None, movies=MOVIES):
    folder.mkdir(exist_ok=True)
    (folder / "ratings.dat").write_text("\n".join(ratings or rating_lines()) + "\n")
    (folder / "movies.dat").write_text("\n".join(movies) + "\n", encoding="utf-8")
    return folder


def wine_ratings(count=40):
    """Rows as they stand in the file: rating, user, wine, vintage (0: none), rating, date."""
    days = [date(2014, 4, 1) + timedelta((7 * i) % count // 2) for i in range(count)]
    return [
        f"{i},U{i % 4},{100001 + i % 2},{0 if i % 5 == 0 else 2010 + i % 7},{1 + i % 9 / 2},{days[i]} 10:00:00"
        for i in range(count)
    ]


def write_wines(folder, ratings=None, wines=WINE_LINES, header="RatingID,UserID,WineID,Vintage,Rating,Date"):
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / xwines.ARCHIVE, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(xwines.RATINGS, "\n".join([header, *(ratings or wine_ratings())]) + "\n")
        archive.writestr(xwines.WINES, "\n".join([WINES, *wines]) + "\n")
    return folder


WRITE = {"movietweetings": write_tweets, "xwines": write_wines}
RATINGS = {"movietweetings": rating_lines, "xwines": wine_ratings}


def params_of(dataset_id, folder):
    return load_experiment(f"FM_{dataset_id}", overrides={"raw_data": str(folder)}).params


def tables(dataset_id, folder):
    params = params_of(dataset_id, folder)
    prepare_raw_data(params)
    return [pd.read_csv(params[f"{split}_data"], dtype=str, keep_default_na=False) for split in SPLITS]


def test_a_row_of_movietweetings_is_a_rating_with_its_movie(tmp_path):
    rows = pd.concat(tables("movietweetings_time", write_tweets(tmp_path / "raw")))
    lines = sorted((line.split("::") for line in rating_lines()), key=lambda parts: int(parts[3]))  # stable
    assert rows["user_id"].tolist() == [parts[0] for parts in lines]
    assert rows["item_id"].tolist() == [parts[1] for parts in lines]
    assert rows["label"].tolist() == [str(int(int(parts[2]) >= 8)) for parts in lines]
    assert rows["hour"].tolist() == [str((int(parts[3]) - START) // 3600 % 24) for parts in lines]
    assert set(rows["weekday"]) == {"Monday"}
    words = rows.drop_duplicates("item_id").set_index("item_id")[["movie_title", "release_year", "genres"]]
    assert words.loc["0000001"].tolist() == ["Fantômas: À l'ombre", "1913", "Crime^Drama"]
    assert words.loc["0000002"].tolist() == ["Up", "2009", ""]
    assert words.loc["1234567"].tolist() == ["1984", "1984", "Sci-Fi"]


def test_a_row_of_xwines_is_a_rating_with_its_wine(tmp_path):
    rows = pd.concat(tables("xwines_time", write_wines(tmp_path / "raw")))
    lines = sorted((line.split(",") for line in wine_ratings()), key=lambda parts: parts[5])
    assert list(rows) == ["label", *xwines.FIELDS]
    assert rows["user_id"].tolist() == [parts[1] for parts in lines]
    assert rows["label"].tolist() == [str(int(float(parts[4]) >= 4)) for parts in lines]
    assert rows["vintage"].tolist() == ["N.V." if parts[3] == "0" else parts[3] for parts in lines]
    ages = ["N.V." if parts[3] == "0" else str(max(0, 2014 - int(parts[3]))) for parts in lines]
    assert rows["age"].tolist() == ages and "0" in ages  # a vintage after the rating is of age 0
    assert set(rows["month"]) == {"April"} and rows["weekday"].iloc[0] == "Tuesday"
    wines = rows.drop_duplicates("item_id").set_index("item_id")[list(xwines.OF_A_WINE.values())]
    assert wines.loc["100001"].tolist() == [
        "Espumante, Moscatel", "Casa Perini", "Brazil", "Serra Gaúcha", "Sparkling", "Varietal/100%", "Muscat/Moscato",
        "Pork^Rich Fish", "7.5", "Medium-bodied", "High",
    ]  # fmt: skip
    assert wines.loc["100002", "grapes"] == "Trebbiano D'Abruzzo^Merlot"


@pytest.mark.parametrize("dataset_id", WRITE)
def test_random_and_time_are_8_1_1_of_the_same_rows(dataset_id, tmp_path):
    folder = WRITE[dataset_id](tmp_path / "raw")
    by_time, random = tables(f"{dataset_id}_time", folder), tables(dataset_id, folder)
    assert [len(table) for table in random] == [len(table) for table in by_time] == [32, 4, 4]
    rows = [sorted(map(tuple, pd.concat(parts).to_numpy().tolist())) for parts in (random, by_time)]
    assert rows[0] == rows[1]
    assert not random[0].equals(by_time[0])
    assert all(a.equals(b) for a, b in zip(random, tables(dataset_id, folder), strict=True))


@pytest.mark.parametrize("dataset_id", WRITE)
def test_every_field_has_words_and_builds(dataset_id, tmp_path):
    params = params_of(dataset_id, WRITE[dataset_id](tmp_path / "raw", RATINGS[dataset_id](120)))
    prepare_raw_data(params)
    built_data(params)
    root = Path(params["data_root"]) / params["dataset_id"]
    features = json.loads((root / "field_texts.json").read_text())
    words = read_field_config(params["field_config"])
    assert words["fields"].keys() == features.keys()
    for entity in words["entities"].values():
        assert {entity["id"], *entity["text"]} <= features.keys()
    for field, values in words["values"].items() if "values" in words else ():
        assert values.keys() <= set(features[field]["values"])


@pytest.mark.parametrize(
    ("dataset_id", "separator", "rating", "time", "other"),
    [("movietweetings", "::", 2, 3, ["10", "0"]), ("xwines", ",", 4, 5, ["5.0", "1.0"])],
)
def test_labels_of_valid_and_test_reach_nothing_else(dataset_id, separator, rating, time, other, tmp_path, monkeypatch):
    parts = [line.split(separator) for line in RATINGS[dataset_id](120)]
    late, before = sorted(range(120), key=lambda i: parts[i][time])[96:], []
    for flipped in (False, True):
        (tmp_path / str(flipped)).mkdir()
        monkeypatch.chdir(tmp_path / str(flipped))
        for i in late if flipped else ():
            parts[i][rating] = other[float(parts[i][rating]) >= {"movietweetings": 8, "xwines": 4}[dataset_id]]
        params = params_of(f"{dataset_id}_time", WRITE[dataset_id](Path("raw"), [separator.join(p) for p in parts]))
        prepare_raw_data(params)
        built_data(params)
        root = Path(params["data_root"]) / params["dataset_id"]
        files = [Path(params["train_data"]), *(root / name for name in ("feature_vocab.json", "field_texts.json"))]
        built = [path.read_bytes() for path in files]
        rows = pd.concat(pd.read_csv(params[f"{split}_data"]) for split in SPLITS[1:])
        if flipped:
            assert built == before[0]
            assert rows["label"].tolist() == (1 - before[1]["label"]).tolist()
            assert rows.drop(columns="label").equals(before[1].drop(columns="label"))
        before = [built, rows]


def spoil(dataset_id, folder, how):
    """Damage a file of the folder; `how` begins with the file's name."""
    name, _, what = how.partition(": ")
    path = folder / name
    if what == "missing":
        path.unlink()
    elif what == "cut":
        path.write_bytes(path.read_bytes()[:-4])
    elif what == "cut, packed":
        Path(f"{path}.gz").write_bytes(gzip.compress(path.read_bytes())[:-4])
        path.unlink()
    elif what == "tabs":
        path.write_text(path.read_text().replace("::", "\t"))
    elif what == "latin-1":
        path.write_bytes(path.read_text().encode("latin-1"))
    elif what == "a word":
        path.write_text(path.read_text().replace("::7::", "::seven::"))
    elif what == "less":
        path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    elif what == "another zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("other.csv", "a,b\n")
    elif what == "semicolons":
        write_wines(folder, [line.replace(",", ";") for line in wine_ratings()], header="UserID;WineID;Vintage;Rating")
    elif what == "no date":
        write_wines(folder, [line.replace("2014-04-05", "5th of April") for line in wine_ratings()])
    elif what == "no rating":
        write_wines(folder, [*wine_ratings(), "41,U1,100001,2014"])
    elif what == "no list":
        write_wines(folder, wines=[line.replace("['Pizza']", "[Pizza") for line in WINE_LINES])
    elif what == "too deep":
        write_wines(folder, wines=[line.replace("['Pizza']", "-" * 100_000 + "1") for line in WINE_LINES])
    elif what == "deep":
        write_wines(folder, wines=[line.replace("['Pizza']", "-" * 3000 + "1") for line in WINE_LINES])
    elif what == "less wines":
        write_wines(folder, wines=WINE_LINES[:1])


@pytest.mark.parametrize(
    ("dataset_id", "how", "message"),
    [
        ("movietweetings", "ratings.dat: missing", "lacks ratings.dat; download from https://raw"),
        ("movietweetings", "ratings.dat: cut", "ratings.dat' is cut: its last line has no end; download it again from"),
        ("movietweetings", "ratings.dat: cut, packed", "ratings.dat.gz' is cut or damaged"),
        ("movietweetings", "ratings.dat: tabs", "ratings.dat', line 1: it must be user_id::item_id::rating::timestamp"),
        (
            "movietweetings",
            "ratings.dat: a word",
            "rating must be a whole number (got 'seven'); download the file again",
        ),
        ("movietweetings", "movies.dat: latin-1", "movies.dat', line 1: it is not utf-8"),
        ("movietweetings", "movies.dat: less", "movies.dat' lacks the movie '1234567' of "),
        (
            "xwines",
            f"{xwines.ARCHIVE}: missing",
            "lacks XWines_Slim_1K_wines_150K_ratings.zip; download from https://raw",
        ),
        (
            "xwines",
            f"{xwines.ARCHIVE}: cut",
            "ratings.zip' is cut or another file: XWines_Slim_150K_ratings.csv cannot",
        ),
        ("xwines", f"{xwines.ARCHIVE}: another zip", "cut or another file: it lacks XWines_Slim_150K_ratings.csv"),
        ("xwines", f"{xwines.ARCHIVE}: semicolons", "lacks the column 'UserID' (it must be separated by commas)"),
        ("xwines", f"{xwines.ARCHIVE}: no date", "has the Date '5th of April 10:00:00'; download it again from"),
        ("xwines", f"{xwines.ARCHIVE}: no rating", "has rows without 'Rating'"),
        ("xwines", f"{xwines.ARCHIVE}: no list", "has the Harmonize '[Pizza'"),
        ("xwines", f"{xwines.ARCHIVE}: deep", "has the Harmonize '-----"),
        ("xwines", f"{xwines.ARCHIVE}: too deep", "has the Harmonize '-----"),
        ("xwines", f"{xwines.ARCHIVE}: less wines", "lacks the wine '100002' of XWines_Slim_150K_ratings.csv"),
    ],
)
def test_a_damaged_file_is_one_line_and_writes_nothing(dataset_id, how, message, tmp_path, capsys):
    folder = WRITE[dataset_id](tmp_path / "raw")
    spoil(dataset_id, folder, how)
    assert main(["prepare", f"{dataset_id}_time", "--raw", str(folder)]) == 2
    error = capsys.readouterr().err
    assert message in error and error.startswith("error: ") and error.count("\n") == 1
    assert not Path("data").exists()


def test_a_damaged_file_leaves_what_was_made_before(tmp_path, capsys):
    folder = write_wines(tmp_path / "raw")
    before = tables("xwines_time", folder)
    spoil("xwines", folder, f"{xwines.ARCHIVE}: no list")
    assert main(["prepare", "xwines_time", "--raw", str(folder)]) == 2
    after = [pd.read_csv(f"data/raw/xwines_time/{split}.csv", dtype=str, keep_default_na=False) for split in SPLITS]
    assert all(a.equals(b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("dataset_id", WRITE)
def test_another_file_than_the_published_one_is_noted(dataset_id, tmp_path, caplog):
    params = params_of(dataset_id, WRITE[dataset_id](tmp_path / "raw"))
    names = list(PREPARERS[dataset_id].originals)
    for _ in range(2):  # made, and found again
        assert prepare_raw_data(params) == {"not_published": names}
    assert prepare_raw_data({**params, "raw_data": None}) == {"not_published": names}
    assert "not the published file (another sha256), used as it is: " + ", ".join(names) in caplog.text
