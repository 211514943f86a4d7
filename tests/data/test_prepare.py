"""MovieLens-100K from GroupLens's own files, and what `prepare` does with half and changed folders."""

import pandas as pd
import polars as pl
import pytest

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.data.prepare import prepare_raw_data
from fuxictr_llm.data.sets import movielens
from fuxictr_llm.data.sets.movielens import prepare_100k as prepare

LATIN = "Misérables, Les (1995)"


@pytest.fixture
def original(tmp_path):
    """A folder in GroupLens's form: 20 ratings, 2 users, 3 movies."""
    folder = tmp_path / "ml-100k"
    folder.mkdir()
    ratings = [f"{1 + i % 2}\t{1 + i % 3}\t{1 + i % 5}\t{880000000 + 3600 * ((7 * i) % 20)}" for i in range(20)]
    (folder / "u.data").write_text("\n".join(ratings) + "\n")
    (folder / "u.user").write_text("1|24|M|technician|85711\n2|53|F|other|94043\n")
    genres = ["0|0|0|1|1|1" + "|0" * 13, "0" + "|0" * 8 + "|0|0|0|1" + "|0" * 6, "1" + "|0" * 18]
    titles = ["Toy Story (1995)", LATIN, "unknown"]
    lines = [f"{i + 1}|{titles[i]}|01-Jan-1995||url|{genres[i]}" for i in range(3)]
    (folder / "u.item").write_bytes("\n".join(lines).encode("latin-1"))
    return folder


def settings(tmp_path, original, **changes):
    files = {f"{split}_data": str(tmp_path / "raw" / f"{split}.csv") for split in ("train", "valid", "test")}
    return {"prepare": "movielens100k", "prepare_split": "random", "raw_data": str(original), **files, **changes}


def test_columns_are_words_and_buckets(original):
    rows = pd.concat(prepare("time", str(original)).values())
    first = rows[(rows.user_id == "1") & (rows.item_id == "1")].iloc[0]
    assert first[["age", "gender", "occupation", "zip_code"]].tolist() == ["20-24", "M", "technician", "857"]
    assert first[["movie_title", "release_year", "genres"]].tolist() == [
        "Toy Story", "1995", "Animation^Children's^Comedy"
    ]  # fmt: skip
    assert rows[rows.item_id == "2"].iloc[0][["movie_title", "genres"]].tolist() == ["Misérables, Les", "Musical"]
    assert rows[rows.item_id == "3"].iloc[0][["movie_title", "release_year", "genres"]].tolist() == [
        "unknown", "", "unknown"
    ]  # fmt: skip
    assert set(rows.weekday) <= {"Wednesday", "Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday"}
    assert set(rows.label) == {0, 1} and len(rows) == 20


def test_splits_are_8_1_1_fixed_and_disjoint(original):
    a, b = prepare("random", str(original)), prepare("random", str(original))
    assert {split: len(table) for split, table in a.items()} == {"train": 16, "valid": 2, "test": 2}
    assert all(a[split].equals(b[split]) for split in a)
    by_time = prepare("time", str(original))
    assert sorted(pd.concat(a.values()).index) == sorted(pd.concat(by_time.values()).index) == list(range(20))
    seconds = [(7 * i) % 20 for i in range(20)]
    assert max(seconds[i] for i in by_time["train"].index) < min(seconds[i] for i in by_time["test"].index)


@pytest.mark.parametrize("split", ["random", "time"])
def test_a_history_is_what_the_user_rated_at_earlier_seconds_in_any_split(original, monkeypatch, split):
    monkeypatch.setattr(movielens, "HISTORY", 4)
    # 20 ratings in 5 seconds of 4: two of the same user in the same second.
    ratings = [f"{1 + i % 2}\t{1 + i % 3}\t{1 + i % 5}\t{880000000 + (7 * i) % 20 // 4}" for i in range(20)]
    (original / "u.data").write_text("\n".join(ratings) + "\n")
    rated = [line.split("\t") for line in ratings]
    rows = pd.concat(prepare(split, str(original), "item_history").values()).sort_index()
    assert "1" in rows.item_history[18] and rows.item_history.str.len().max() == 7
    for row, (user, _, _, second) in enumerate(rated):
        before = sorted((then, place) for place, (whose, _, _, then) in enumerate(rated) if whose == user)
        told = [rated[place][1] for then, place in before if then < second]
        assert rows.item_history[row] == "^".join(told[-4:])


@pytest.mark.parametrize("adds", ["item_history", "label_5"])
def test_an_added_column_changes_no_other(original, adds):
    plain, with_column = prepare("random", str(original)), prepare("random", str(original), adds)
    for split, table in with_column.items():
        assert table.drop(columns=adds).equals(plain[split])
    assert adds != "label_5" or set(pd.concat(with_column.values()).query("label_5 == 1").label) == {1}


def test_a_prepared_folder_is_left_alone_and_half_a_folder_is_made_anew(tmp_path, original, caplog, monkeypatch):
    params = settings(tmp_path, original)
    prepare_raw_data(params)
    train = tmp_path / "raw" / "train.csv"
    stamp, content = train.stat().st_mtime_ns, train.read_text()
    prepare_raw_data(params)
    assert train.stat().st_mtime_ns == stamp
    (tmp_path / "raw" / "test.csv").unlink()
    prepare_raw_data(params)
    assert (tmp_path / "raw" / "test.csv").is_file()
    write_csv, calls = pl.DataFrame.write_csv, []

    def killed(table, *args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        write_csv(table, *args, **kwargs)

    (tmp_path / "raw" / "valid.csv").unlink()
    monkeypatch.setattr(pl.DataFrame, "write_csv", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare_raw_data(params)
    train.write_text("half")
    prepare_raw_data(params)
    assert train.read_text() == content and (tmp_path / "raw" / "valid.csv").is_file()
    caplog.clear()
    train.write_text(content + content.splitlines()[1])
    prepare_raw_data(params)
    assert train.read_text() != content and "changed since it was prepared" in caplog.text


def test_without_test_data_no_test_file_is_asked_for_and_none_is_taken_for_what_it_is_not(tmp_path, original):
    raw, other = tmp_path / "raw", {"prepare_split": "time"}
    prepare_raw_data(settings(tmp_path, original, test_data=None))
    assert {path.name for path in raw.iterdir()} == {"train.csv", "valid.csv", "prepared.json"}
    prepare_raw_data(settings(tmp_path, original))
    old, stamp = (raw / "test.csv").read_text(), (raw / "train.csv").stat().st_mtime_ns
    prepare_raw_data(settings(tmp_path, original, test_data=None))
    assert (raw / "train.csv").stat().st_mtime_ns == stamp
    prepare_raw_data(settings(tmp_path, original, test_data=None, **other))
    assert (raw / "test.csv").read_text() == old  # it is of the split before, which the next call has to see
    prepare_raw_data(settings(tmp_path, original, **other))
    assert (raw / "test.csv").read_text() != old


def test_the_files_are_as_pandas_would_write_them(tmp_path, original):
    prepare_raw_data(settings(tmp_path, original))
    for split, table in prepare("random", str(original)).items():
        assert (tmp_path / "raw" / f"{split}.csv").read_text() == table.to_csv(index=False)


def test_another_split_or_raw_file_is_noticed(tmp_path, original):
    prepare_raw_data(settings(tmp_path, original))
    before = (tmp_path / "raw" / "train.csv").read_text()
    prepare_raw_data(settings(tmp_path, original, prepare_split="time"))
    assert (tmp_path / "raw" / "train.csv").read_text() != before
    with (original / "u.user").open("a") as file:
        file.write("3|20|F|artist|00000\n")
    stamp = (tmp_path / "raw" / "train.csv").stat().st_mtime_ns
    prepare_raw_data(settings(tmp_path, original, prepare_split="time"))
    assert (tmp_path / "raw" / "train.csv").stat().st_mtime_ns != stamp


def test_bad_settings_and_folders_are_named(tmp_path, original):
    with pytest.raises(UserError, match="unknown data set 'movielens100' .*did you mean 'movielens100k'"):
        prepare_raw_data(settings(tmp_path, original, prepare="movielens100"))
    with pytest.raises(UserError, match="valid_data must name a .csv file"):
        prepare_raw_data(settings(tmp_path, original, valid_data=None))
    (original / "u.item").unlink()
    with pytest.raises(UserError, match="lacks u.item of GroupLens"):
        prepare_raw_data(settings(tmp_path, original))


def test_files_that_it_did_not_write_are_never_overwritten(tmp_path, original):
    params = settings(tmp_path, original)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "train.csv").write_text("mine")
    with pytest.raises(UserError, match="would overwrite .*train.csv', which it did not write; move it away"):
        prepare_raw_data(params)
    (tmp_path / "raw" / "train.csv").unlink()
    prepare_raw_data(params)
    (tmp_path / "raw" / "valid.csv").write_text("changed by hand")
    (original / "notes.txt").write_text("an unrelated file changes nothing")
    prepare_raw_data(params)
    with pytest.raises(UserError, match="would overwrite .*valid.csv'"):
        prepare_raw_data(settings(tmp_path, original, prepare_split="time"))
    assert (tmp_path / "raw" / "valid.csv").read_text() == "changed by hand"


@pytest.mark.parametrize("text", ['{"made_from": {"na', "[1]", ""])
def test_a_damaged_manifest_beside_whole_files_is_made_anew_and_beside_changed_ones_named(tmp_path, original, text):
    params, manifest = settings(tmp_path, original), tmp_path / "raw" / "prepared.json"
    prepare_raw_data(params)
    before = manifest.read_text()
    manifest.write_text(text)
    prepare_raw_data(params)
    assert manifest.read_text() == before
    manifest.write_text(text)
    (tmp_path / "raw" / "valid.csv").write_text("changed by hand")
    for _ in range(2):
        with pytest.raises(
            UserError, match="prepared.json' is damaged, and '.*valid.csv' is not what .*; move it away"
        ):
            prepare_raw_data(params)
        assert (tmp_path / "raw" / "valid.csv").read_text() == "changed by hand"
    (tmp_path / "raw" / "valid.csv").unlink()
    prepare_raw_data(params)
    assert manifest.read_text() == before
