"""LLaCTR's data sets from small files in the original forms: columns, splits, hard texts, damaged files."""

import gzip
import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.build import built_data
from fuxictr_llm.data.prepare import prepare_raw_data
from fuxictr_llm.data.sets import amazon, tenths

SPLITS = ("train", "valid", "test")
DAY = 86_400_000
HARD = [
    'a "quoted" text, with commas',
    '"',
    "two\nlines\r\nand\ttabs",
    "  spaces  around  ",
    "naïve ☕ 日本",
    "#hash; semi; 'single'",
    "nul\x00byte",
    "half \ud83d pair",
    "NULL",
    "007",
]


def review(number, **changes):
    times = (number * 7) % 20 // 2  # out of order, and each time twice
    return {
        "rating": float(1 + number % 5),
        "title": "the review's own title",
        "text": "other words",
        "asin": "X",
        "parent_asin": f"B{number % 10}",
        "user_id": f"U{number % 4}",
        "timestamp": 1_600_000_000_000 + times * DAY,
        **changes,
    }


def item(number, **changes):
    return {
        "parent_asin": f"B{number}",
        "main_category": "Gift Cards",
        "title": HARD[number],
        "average_rating": 4.5,
        "rating_number": 12,
        "features": ["one,", "two"],
        "description": ["long"] if number else [],
        "price": None if number % 2 else 25.0,
        "store": "Acme",
        "categories": ["Gift Cards", "For all"],
        "details": {"Brand": "Acme", "Size": {"h": 1}},
        "images": [],
        **changes,
    }


def write_lines(path, records):
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)


@pytest.fixture
def gift(tmp_path):
    """A folder with 40 reviews, packed, and 9 items (B9 has none), and the settings that read it."""
    folder = tmp_path / "gift"
    folder.mkdir()
    write_lines(folder / "Gift_Cards.jsonl.gz", map(review, range(40)))
    write_lines(folder / "meta_Gift_Cards.jsonl", [*map(item, range(9)), item(0, title="a second entry")])
    return load_experiment("FM_gift", overrides={"raw_data": str(folder)}).params


@pytest.fixture
def ml1m(tmp_path):
    folder = tmp_path / "ml-1m"
    folder.mkdir()
    lines = [f"{1 + i % 2}::{1 + i % 3}::{1 + i % 5}::{978300000 + 3600 * ((7 * i) % 50)}" for i in range(50)]
    (folder / "ratings.dat").write_text("\n".join(lines) + "\n")
    (folder / "users.dat").write_text("1::F::1::10::48067\n2::M::56::16::70072\n")
    movies = "1::Toy Story (1995)::Animation|Children's\n2::Misérables, Les (1995)::Drama\n"
    (folder / "movies.dat").write_bytes(movies.encode("latin-1"))
    return load_experiment("FM_movielens1m", overrides={"raw_data": str(folder)}).params


def tables(params):
    prepare_raw_data(params)
    return [pd.read_csv(params[f"{split}_data"], dtype=str, keep_default_na=False) for split in SPLITS]


def test_amazon_rows_are_reviews_with_their_items(gift):
    rows = pd.concat(tables(gift))
    assert list(rows) == ["label", *amazon.FIELDS] and len(amazon.FIELDS) == 13
    order = sorted(range(40), key=lambda number: review(number)["timestamp"])  # stable, as the split must be
    assert rows["parent_asin"].tolist() == [review(number)["parent_asin"] for number in order]
    assert rows["label"].tolist() == [str(int(review(number)["rating"] >= 4)) for number in order]
    first = rows[rows["parent_asin"] == "B0"].iloc[0]
    assert first["title"] == HARD[0]
    assert first["features"] == "one,; two"
    assert first["description"] == ""
    assert first[["price", "categories"]].tolist() == ["25.0", "Gift Cards; For all"]
    assert first["details"] == "Brand: Acme; Size: h: 1"
    assert (rows[rows["parent_asin"] == "B9"][list(amazon.OF_THE_ITEM)] == "").all(axis=None)


def test_hard_texts_are_the_same_in_the_built_vocabulary(gift, monkeypatch):
    monkeypatch.setattr(amazon, "CHUNK", 7)
    prepare_raw_data(gift)
    built_data(gift)
    vocabulary = json.loads(Path("data/amazon_gift/feature_vocab.json").read_text())["title"]
    expected = {" ".join(text.split()).replace("\ud83d", "?") for text in HARD[:9]}
    assert expected <= set(vocabulary) and len(vocabulary) == len(expected) + 2


def test_the_split_is_by_time_and_weekdays_are_never_unseen(gift):
    parts = tables(gift)
    assert [len(part) for part in parts] == [32, 4, 4]
    assert set(parts[2]["timestamp"]) <= set(parts[0]["timestamp"]) <= {
        "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"
    }  # fmt: skip


def test_raw_times_are_out_of_vocabulary_in_every_row_of_test(gift):
    gift["timestamp"] = "raw"
    train, valid, test = tables(gift)
    assert train["timestamp"].iloc[0] == "1600000000000"
    assert max(train["timestamp"]) <= min(valid["timestamp"]) and max(valid["timestamp"]) <= min(test["timestamp"])
    files = built_data(gift)
    vocabulary = json.loads(Path("data/amazon_gift/feature_vocab.json").read_text())["timestamp"]
    assert set(pq.read_table(files["test_data"])["timestamp"].to_pylist()) == {vocabulary["__OOV__"]}


def test_movielens1m_has_eight_fields_and_no_rating_of_three(ml1m):
    parts = tables(ml1m)
    rows = pd.concat(parts)
    assert list(rows) == ["label", "UserID", "Gender", "Age", "Occupation", "MovieID", "Title", "Genres", "Timestamp"]
    assert [len(part) for part in parts] == [32, 4, 4]
    kept = sorted((i for i in range(50) if i % 5 != 2), key=lambda i: (7 * i) % 50)
    assert rows["label"].tolist() == [str(int(1 + i % 5 > 3)) for i in kept]
    assert rows["MovieID"].tolist() == [str(1 + i % 3) for i in kept]
    known = rows.drop_duplicates("MovieID").set_index("MovieID")
    assert known.loc["2", "Title"] == "Misérables, Les (1995)" and known.loc["1", "Genres"] == "Animation, Children's"
    assert known.loc["3", ["Title", "Genres"]].tolist() == ["", ""]
    assert set(rows["Occupation"]) == {"10", "16"} and set(rows["Timestamp"]) <= {"Sunday", "Monday", "Tuesday"}


def test_originals_are_needed_once(gift):
    prepare_raw_data(gift)
    stamp = Path(gift["train_data"]).stat().st_mtime_ns
    without = {**gift, "raw_data": None}
    prepare_raw_data(without)
    assert Path(gift["train_data"]).stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="original files are needed: Gift_Cards.jsonl, meta_Gift_Cards.jsonl"):
        prepare_raw_data({**without, "timestamp": "raw"})
    write_lines(Path(gift["raw_data"]) / "meta_Gift_Cards.jsonl", map(item, range(5)))
    prepare_raw_data(gift)
    assert Path(gift["train_data"]).stat().st_mtime_ns > stamp


@pytest.mark.parametrize(
    ("dataset_id", "files", "page"),
    [
        ("amazon_gift", ["Gift_Cards.jsonl", "meta_Gift_Cards.jsonl"], "amazon-reviews-2023.github.io"),
        ("amazon_music", ["Digital_Music.jsonl", "meta_Digital_Music.jsonl"], "amazon-reviews-2023.github.io"),
        ("amazon_game", ["Video_Games.jsonl", "meta_Video_Games.jsonl"], "amazon-reviews-2023.github.io"),
        ("movielens1m", ["ratings.dat", "users.dat", "movies.dat"], "grouplens.org/datasets/movielens/1m"),
    ],
)
def test_without_originals_it_says_which_and_where(dataset_id, files, page):
    with pytest.raises(UserError) as error:
        prepare_raw_data(load_experiment(f"FM_{dataset_id}").params)
    text = str(error.value)
    assert all(name in text for name in [*files, page, f"prepare {dataset_id} --raw DIR"])
    assert not Path("data").exists()


def spoil(params, how):
    folder = Path(params["raw_data"])
    reviews, items = folder / "Gift_Cards.jsonl.gz", folder / "meta_Gift_Cards.jsonl"
    if how == "cut":
        reviews.write_bytes(reviews.read_bytes()[:-20])
    elif how == "not packed":
        reviews.write_bytes(b'{"rating": 5}')
    elif how == "half a line":
        items.write_text(items.read_text()[:-30])
    elif how == "a list":
        items.write_text(items.read_text() + "[]\n")
    elif how == "not UTF-8":
        items.write_bytes(items.read_bytes() + b'{"title": "\xff"}\n')
    elif how == "no item id":
        write_lines(items, [item(0), item(1, parent_asin=None)])
    elif how == "no user":
        write_lines(reviews, [review(0), {"rating": 5.0, "parent_asin": "B1", "timestamp": 1}])
    elif how == "a word as rating":
        write_lines(reviews, [review(0, rating="good")])
    elif how == "no number as rating":
        write_lines(reviews, [review(0, rating=float("nan"))])
    elif how == "no such time":
        write_lines(reviews, [review(0, timestamp=10**30)])
    elif how == "a user that is null":
        write_lines(reviews, [review(0, user_id=None)])
    elif how == "few":
        write_lines(reviews, map(review, range(9)))
    elif how == "missing":
        items.unlink()
    elif how == "another split":
        params["prepare_split"] = "random"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", "Gift_Cards.jsonl.gz' is cut or damaged: Compressed file ended .*download it again"),
        ("not packed", "Gift_Cards.jsonl.gz' is cut or damaged: Not a gzipped file"),
        ("half a line", "meta_Gift_Cards.jsonl', line 10: it is not JSON"),
        ("a list", "meta_Gift_Cards.jsonl', line 11: it is no JSON object"),
        ("not UTF-8", "meta_Gift_Cards.jsonl', line 11: it is not utf-8"),
        ("no item id", "meta_Gift_Cards.jsonl', line 2: it needs parent_asin"),
        ("no user", r"Gift_Cards.jsonl.gz', line 2: it needs .*\(KeyError\('user_id'\)\)"),
        ("a word as rating", "Gift_Cards.jsonl.gz', line 1: it needs .*good"),
        ("no number as rating", "Gift_Cards.jsonl.gz', line 1: it needs .*nan"),
        ("no such time", "Gift_Cards.jsonl.gz', line 1: it needs .*1000000"),
        ("a user that is null", "Gift_Cards.jsonl.gz', line 1: it needs .*None"),
        ("few", "Gift_Cards.jsonl.gz has 9 rows that can be used; 8:1:1 needs at least ten"),
        ("missing", "lacks meta_Gift_Cards.jsonl"),
        ("another split", "splits in the order of time"),
    ],
)
def test_damaged_originals_are_named_and_write_nothing(gift, how, message):
    spoil(gift, how)
    with pytest.raises(UserError, match=message):
        prepare_raw_data(gift)
    assert not Path("data").exists()


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        (
            "ratings.dat",
            "1::1::five::978300000",
            r"ratings.dat', line 51: Rating must be a whole number \(got 'five'\)",
        ),
        ("ratings.dat", f"1::1::5::{9 * 10**19}", "ratings.dat', line 51: Timestamp must be a whole number"),
        ("users.dat", "3::F::25", "users.dat', line 3: it must be UserID::Gender::Age::Occupation::Zip-code"),
    ],
)
def test_damaged_lines_of_movielens_are_named(ml1m, file, line, message):
    with (Path(ml1m["raw_data"]) / file).open("a") as end:
        end.write(f"{line}\n")
    with pytest.raises(UserError, match=message):
        prepare_raw_data(ml1m)


def test_tenths_cover_all_rows_once():
    for rows in (10, 11, 19, 20, 1009):
        parts = [range(rows)[part] for part in tenths(rows, "a table").values()]
        assert [row for part in parts for row in part] == list(range(rows))
        assert len(parts[1]) == len(parts[2]) == rows // 10
