"""Further splits of a data set: every row once, no row of the future in train, made anew where what they are of changed."""

import numpy as np
import pandas as pd
import pytest

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.runs import Stages
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.loader import describe_data
from fuxictr_llm.data.splits import cut, is_outdated, make_split, split_files, split_params
from fuxictr_llm.experiment.preparation import make_data
from fuxictr_llm.leaderboard.plan.arms import data_digests
from support import edit

SIZES = {"train": 80, "valid": 10, "test": 12}


def test_random_splits_have_every_row_once_and_the_sizes_of_the_data_set():
    parts = [cut(SIZES, {"by": "random", "number": number, "of": 3}) for number in (1, 2, 3)]
    for part in parts:
        assert {split: len(rows) for split, rows in part.items()} == SIZES
        assert sorted(np.concatenate([*part.values()])) == list(range(102))
    assert not np.array_equal(parts[0]["test"], parts[1]["test"])
    again = cut(SIZES, {"by": "random", "number": 1, "of": 9})
    assert np.array_equal(parts[0]["test"], again["test"])  # a further split leaves the others as they are


def test_rolling_splits_end_one_after_the_other_and_the_last_is_the_data_sets_own():
    parts = [cut(SIZES, {"by": "time", "number": number, "of": 3}) for number in (1, 2, 3)]
    for part, end in zip(parts, (78, 90, 102), strict=True):
        assert [*part["train"], *part["valid"], *part["test"]] == list(range(end))
        assert (len(part["valid"]), len(part["test"])) == (10, 12)
    assert cut(SIZES, {"by": "time", "number": 4, "of": 4})["train"][-1] == 79
    with pytest.raises(UserError, match="'shop' has rows for at most 4 rolling splits \\(got 5\\)"):
        cut(SIZES, {"by": "time", "number": 1, "of": 5}, "shop")


def params_of(configs, by=None, number=1, of=2, **changes):
    params = load_experiment("FM_shop", configs, overrides=changes).params
    return split_params(params, by, number, of)


def read(params):
    return {split: pd.read_csv(path, dtype=str, keep_default_na=False) for split, path in split_files(params).items()}


def test_a_split_is_a_data_set_of_its_own_whose_record_has_its_files(configs):
    own = load_experiment("FM_shop", configs).params
    first, second = (make_data(params_of(configs, number=number), Stages()) for number in (1, 2))
    assert (
        first["dataset_id"] == "shop_random1of2"
        and second["train_data"] == f"{own['data_root']}/shop_random2of2/train.parquet"
    )
    digests = [data_digests(params_of(configs, number=number)) for number in (1, 2)]
    assert digests[0] != digests[1] != data_digests(own)
    for number, of in zip((1, 2), digests, strict=True):
        params = params_of(configs, number=number)
        assert (
            describe_data({**params, **split_files(params)}, configs.parent / "data" / params["dataset_id"])["sha256"]
            == of
        )
    whole = pd.concat([pd.read_csv(own[f"{split}_data"], dtype=str) for split in ("train", "valid", "test")])
    columns = [*whole.columns]
    for number in (1, 2):
        rows = pd.concat(read(params_of(configs, number=number)).values())
        assert rows.sort_values(columns).to_numpy().tolist() == whole.sort_values(columns).to_numpy().tolist()


def test_a_split_is_made_anew_where_the_data_changed(configs):
    params = params_of(configs)
    make_split(params)
    before, digests = read(params), data_digests(params)
    make_split(params)
    assert data_digests(params) == digests and not is_outdated(params)
    edit(configs.parent / "raw" / "valid.csv", "red", "gray")
    assert is_outdated(params) and data_digests(params) == {}
    make_split(params)
    assert data_digests(params) != digests and not is_outdated(params)
    assert any("gray" in set(rows["color"]) for rows in read(params).values())
    assert {name: len(rows) for name, rows in before.items()} == {
        "train_data": 900,
        "valid_data": 150,
        "test_data": 150,
    }


@pytest.mark.parametrize("form", ["{}", "2020-01-01T00:{:02d}:00"])
def test_rolling_splits_are_cut_by_the_time_column(configs, form):
    times, at = np.random.default_rng(0).permutation(1200) % 60, 0
    for split, rows in {"train": 900, "valid": 150, "test": 150}.items():
        path = configs.parent / "raw" / f"{split}.csv"
        table = pd.read_csv(path).assign(at=[form.format(int(time)) for time in times[at : at + rows]])
        table.to_csv(path, index=False)
        at += rows
    params = params_of(configs, number=1, time_column="at")
    assert params["resplit"]["by"] == "time"
    make_split(params)
    parts = [
        rows["at"].map(lambda text: int(text.split(":")[1]) if ":" in text else int(text))
        for rows in read(params).values()
    ]
    assert [len(part) for part in parts] == [750, 150, 150]
    assert parts[0].max() <= parts[1].min() and parts[1].max() <= parts[2].min()
    assert parts[2].max() < max(times)


def test_what_cannot_be_split_is_told(configs):
    with pytest.raises(UserError, match="'shop' has no time stamps for rolling splits: name a time_column"):
        params_of(configs, "time")
    with pytest.raises(UserError, match="unknown time_column 'att'"):
        make_split(params_of(configs, "time", time_column="att"))
    with pytest.raises(UserError, match="time_column 'city' .* must hold numbers or ISO 8601 times \\(got '[A-Z]"):
        make_split(params_of(configs, "time", time_column="city"))
    with pytest.raises(UserError, match="cannot be split anew: that needs csv files of train, valid and test"):
        params_of(configs, test_data=None)
    with pytest.raises(UserError, match="needs a data set of its own, called NAME_random1of2"):
        make_split({**params_of(configs), "dataset_id": "shop"})


@pytest.mark.parametrize("by", ["random", "time"])
def test_a_split_without_rows_or_without_its_file_is_told(configs, by):
    params = params_of(configs, by, time_column="user")
    path = configs.parent / "raw" / "test.csv"
    path.write_text(path.read_text().partition("\n")[0] + "\n")
    with pytest.raises(UserError, match=f"'shop_{by}1of2' cannot be split anew: its test file has no rows"):
        make_split(params)
    with pytest.raises(UserError, match=f"'shop_{by}1of2' cannot be split anew: resplit needs test_data"):
        make_split({**params, "test_data": None})
    make_split(params_of(configs, "random", test_data="raw/valid.csv"))
    assert is_outdated({**params_of(configs, "random"), "test_data": None})


def test_files_with_their_columns_in_another_order_are_split_and_other_columns_are_told(configs):
    params, path = params_of(configs), configs.parent / "raw" / "test.csv"
    make_split(params)
    before, table = read(params), pd.read_csv(path, dtype=str, keep_default_na=False)
    table[table.columns[::-1]].to_csv(path, index=False)
    make_split(params)
    after = read(params)
    assert all(after[split].equals(rows) for split, rows in before.items())
    table.drop(columns="color").to_csv(path, index=False)
    with pytest.raises(UserError, match="test.csv' lacks the column 'color', other than the first file of train"):
        make_split(params)
    table.assign(more="1").to_csv(path, index=False)
    with pytest.raises(UserError, match="test.csv' has the column 'more', other than the first file of train"):
        make_split(params)
    assert all(after[split].equals(rows) for split, rows in read(params).items())  # nothing is lost


@pytest.mark.parametrize("content", ["{}", "[]", "1", "{", '{"made_from": 1}'])
def test_a_manifest_of_another_form_is_that_of_an_outdated_split(configs, content):
    params = params_of(configs)
    make_split(params)
    manifest = configs.parent / "data" / "shop_random1of2" / "raw" / "split.json"
    whole = manifest.read_text()
    manifest.write_text(content)
    assert is_outdated(params)
    make_split(params)
    assert manifest.read_text() == whole and not is_outdated(params)


def test_movielens_in_the_order_of_time_needs_no_column():
    params = load_experiment("FM_movielens100k_time").params
    assert split_params(params, None, 1, 3)["dataset_id"] == "movielens100k_time_time1of3"
    assert split_params(load_experiment("FM_movielens100k").params, None, 1, 3)["resplit"]["by"] == "random"
    with pytest.raises(UserError, match="no time stamps"):
        split_params(load_experiment("FM_movielens100k").params, "time", 1, 3)
