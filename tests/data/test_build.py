"""Built data: FuxiCTR's form, rebuilt when something changed, refused with a reason when something is wrong."""

import json
from pathlib import Path

import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fuxictr_llm.common import files as common_files
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data import build, counting, id_files
from fuxictr_llm.data.build import built_data
from support import flip_a_byte
from support_process import run_code


@pytest.fixture
def params(configs):
    return load_experiment("DeepFM_shop", configs).params


def raw(params, split="train"):
    return Path(params[f"{split}_data"])


def data_dir(params):
    return Path(params["data_root"]) / "shop"


def edit(path, **columns):
    pd.read_csv(path, dtype=str).assign(**columns).to_csv(path, index=False)


def test_the_result_is_what_fuxictr_writes(params):
    files = built_data(params)
    assert files == {
        f"{split}_data": str(data_dir(params) / f"{split}.parquet") for split in ("train", "valid", "test")
    }
    feature_map = json.loads((data_dir(params) / "feature_map.json").read_text())
    assert feature_map["dataset_id"] == "shop" and feature_map["labels"] == ["click"]
    vocabulary = json.loads((data_dir(params) / "feature_vocab.json").read_text())
    table, source = pq.read_table(files["test_data"]).to_pydict(), pd.read_csv(raw(params, "test"), dtype=str)
    assert table["color"] == [vocabulary["color"][value] for value in source["color"]]
    for ids, tags in zip(table["tags"], source["tags"], strict=True):
        expected = [vocabulary["tags"][tag] for tag in tags.split("^")]
        assert list(ids) == expected + [0] * (3 - len(expected))


def test_values_unseen_in_train_are_out_of_vocabulary(params):
    edit(raw(params, "test"), color="purple")
    files = built_data(params)
    vocabulary = json.loads((data_dir(params) / "feature_vocab.json").read_text())
    assert set(pq.read_table(files["test_data"])["color"].to_pylist()) == {vocabulary["color"]["__OOV__"]}


def test_slices_give_the_same_rows(params, monkeypatch):
    whole = pq.read_table(built_data(params)["train_data"])
    monkeypatch.setattr(id_files, "SLICE_ROWS", 100)
    edit(raw(params, "valid"), color="red")
    sliced = pq.read_table(built_data(params)["train_data"])
    assert sliced.equals(whole)


def test_an_unchanged_data_set_is_not_built_again(params):
    built_data(params)
    stamp = (data_dir(params) / "build.json").stat().st_mtime_ns
    built_data(params)
    assert (data_dir(params) / "build.json").stat().st_mtime_ns == stamp


def test_a_changed_raw_file_is_noticed(params, caplog):
    files = built_data(params)
    edit(raw(params, "test"), color="red")
    built_data(params)
    assert len(set(pq.read_table(files["test_data"])["color"].to_pylist())) == 1
    assert "changed since it was built: raw" in caplog.text


def test_a_changed_column_list_is_noticed(params, caplog):
    files = built_data(params)
    params["feature_cols"] = [{**params["feature_cols"][0], "name": ["color", "city"]}]
    built_data(params)
    assert set(pq.read_schema(files["train_data"]).names) == {"color", "city", "click"}
    assert "changed since it was built: settings" in caplog.text


def test_a_build_that_fails_leaves_the_old_data_set(params, monkeypatch):
    files = built_data(params)
    before = Path(files["train_data"]).read_bytes()
    edit(raw(params), color="red")

    def broken(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "write_splits", broken)
    with pytest.raises(KeyboardInterrupt):
        built_data(params)
    assert Path(files["train_data"]).read_bytes() == before
    assert {path.name for path in Path(params["data_root"]).iterdir()} == {"shop", ".shop.build.lock"}


def test_a_data_set_that_fuxictr_built_is_used_with_a_warning(params, caplog):
    built_data(params)
    (data_dir(params) / "build.json").unlink()
    built_data(params)
    assert "was built by FuxiCTR itself" in caplog.text
    params["feature_cols"] = [{**params["feature_cols"][0], "name": ["color", "city"]}]
    with pytest.raises(UserError, match="was built by something else, with other columns"):
        built_data(params)


def spoil(params, how):
    path = raw(params, "valid")
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_text("")
    elif how == "header only":
        path.write_text(path.read_text().splitlines()[0] + "\n")
    elif how == "no column":
        path.write_text(path.read_text().replace("color", "colour", 1))
    elif how == "label":
        edit(path, click="2")
    elif how == "no label":
        edit(path, click="")
    elif how == "one label":
        edit(path, click="1")
    elif how == "other ending":
        params["valid_data"] = str(path.rename(path.with_suffix(".txt")))
    elif how == "ragged":
        path.write_text(path.read_text() + "a,b,c,d,0,e,f\n")
    elif how == "empty column":
        edit(raw(params), color="")
    elif how == "words as label":
        edit(path, click="yes")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"data file '.*valid.csv' is missing"),
        ("empty", r"data file '.*valid.csv' is empty"),
        ("header only", r"valid.csv' is empty: it has a header and no rows"),
        ("no column", r"valid.csv' has no column 'color'; did you mean 'colour'\? it has: colour, city"),
        ("label", r"label 'click' of data file '.*valid.csv' must be 0 or 1 \(got 2.0 in row 1 below the header\)"),
        ("no label", r"label 'click' of data file '.*valid.csv' must be 0 or 1 \(got None in row 1 below the header\)"),
        (
            "words as label",
            r"column 'click' holds the text 'yes' in data file '.*valid.csv', row 1 below the header; a label is 0 or 1",
        ),
        ("one label", r"label 'click' of data file '.*valid.csv' has one value only"),
        ("other ending", r"data file '.*valid.txt' must end in .csv"),
        ("ragged", r"data set 'shop' cannot be built: ComputeError|cannot be read"),
        ("empty column", r"column 'color' has no value that occurs min_categr_count=1 times in the train split"),
    ],
)
def test_bad_raw_data_is_named_and_builds_nothing(params, how, message):
    spoil(params, how)
    with pytest.raises(UserError, match=message):
        built_data(params)
    assert not data_dir(params).exists()


@pytest.mark.parametrize("filled", [{}, {"fill_na": "none"}])
def test_a_meta_column_without_a_value_is_named(params, filled):
    for split in ("train", "valid", "test"):
        edit(raw(params, split), group="")
    params["feature_cols"].append({"name": "group", "active": True, "dtype": "str", "type": "meta", **filled})
    if filled:
        built_data(params)
        return
    with pytest.raises(UserError, match="column 'group' has no value; set active: false for it"):
        built_data(params)


def test_prebuilt_formats_need_a_feature_map(params):
    params["data_format"] = "npz"
    with pytest.raises(UserError, match="has no feature_map.json"):
        built_data(params)
    params["data_format"] = "csv"
    built_data(params)
    params["data_format"] = "parquet"
    assert built_data(params) == {}


@pytest.mark.parametrize("rows", [150, 40, 7])
def test_blocks_have_the_rows_of_one_file(params, rows, monkeypatch):
    monkeypatch.setattr(id_files, "SLICE_ROWS", 100)
    whole = {split: pq.read_table(path) for split, path in built_data(params).items()}
    params["data_block_size"] = rows
    for split, folder in built_data(params).items():
        blocks = sorted(Path(folder).iterdir())
        assert [block.name for block in blocks] == [f"part-{index:06d}.parquet" for index in range(len(blocks))]
        counts = [pq.read_metadata(block).num_rows for block in blocks]
        assert len(blocks) == len(whole[split]) // rows and min(counts) >= rows and max(counts) - min(counts) <= 1
        assert pa.concat_tables(map(pq.read_table, blocks)).equals(whole[split])


def test_a_block_larger_than_a_split_is_refused(params):
    params["data_block_size"] = 151
    with pytest.raises(UserError, match="data_block_size 151 is more than the 150 rows of .*valid.csv"):
        built_data(params)


STRANGERS = """
from fuxictr.preprocess import FeatureProcessor

class Counting(FeatureProcessor):
    def fit_categorical_col(self, col, stats=None, **kwargs):
        counts = {value.lower(): count for value, count in stats["value_counts"].items()}
        super().fit_categorical_col(col, {"value_counts": counts}, **kwargs)

class Fitting(FeatureProcessor):
    def fit(self, train_ddf, **kwargs):
        self.seen = train_ddf.collect()
        super().fit(train_ddf, **kwargs)

class Transforming(FeatureProcessor):
    def transform(self, batch):
        made = super().transform(batch)
        return {**made, "color": [7] * len(made["color"])}
"""


@pytest.fixture
def strangers(tmp_path, monkeypatch):
    (tmp_path / "own_build_processors.py").write_text(STRANGERS)
    monkeypatch.syspath_prepend(tmp_path)


def test_a_processors_own_ways_are_taken(params, strangers):
    edit(raw(params), color="RED")
    built_data(params | {"feature_processor": "own_build_processors:Counting"})
    assert json.loads((data_dir(params) / "feature_vocab.json").read_text())["color"].keys() == {
        "red",
        "__PAD__",
        "__OOV__",
    }
    files = built_data(params | {"feature_processor": "own_build_processors:Transforming"})
    assert set(pq.read_table(files["train_data"])["color"].to_pylist()) == {7}


@pytest.mark.parametrize(
    ("name", "least"), [("Counting", 3 * counting.BYTES_A_VALUE), ("Fitting", 900 * counting.BYTES_A_CELL), (None, 900)]
)
def test_values_that_do_not_fit_are_refused_before_fuxictr_holds_them(params, strangers, monkeypatch, name, least):
    if name:
        params["feature_processor"] = f"own_build_processors:{name}"
    free = psutil.virtual_memory()
    monkeypatch.setattr(counting.psutil, "virtual_memory", lambda: free._replace(available=least))
    with pytest.raises(UserError, match=r"the vocabularies need about .* GiB for the values of train, and 0.0 GiB are"):
        built_data(params)
    assert not data_dir(params).exists()
    monkeypatch.setattr(counting.psutil, "virtual_memory", lambda: free._replace(available=2**40))
    built_data(params)


def test_building_starts_no_ray(configs):
    code = (
        "import ray; from fuxictr_llm import load_experiment; from fuxictr_llm.data.build import built_data; "
        f"built_data(load_experiment('DeepFM_shop', {str(configs)!r}).params); assert not ray.is_initialized()"
    )
    ended = run_code(code)
    assert ended.returncode == 0, ended.stderr


def test_raw_files_in_the_folder_of_the_data_set_are_kept(params):
    folder = data_dir(params)
    folder.mkdir(parents=True)
    for split in ("train", "valid", "test"):
        params[f"{split}_data"] = str(raw(params, split).rename(folder / f"{split}.csv"))
    content = (folder / "train.csv").read_bytes()
    for _ in range(2):
        built_data(params)
        edit(folder / "valid.csv", color="red")
    assert (folder / "train.csv").read_bytes() == content and (folder / "train.parquet").is_file()


def test_raw_files_where_the_built_ones_go_are_refused(params, tmp_path):
    files = built_data(params)
    params |= {**files, "data_format": "parquet", "rebuild_dataset": True}
    with pytest.raises(UserError, match="lies where the built data goes; move it"):
        built_data(params)
    assert Path(files["train_data"]).is_file()


def test_a_damaged_or_missing_built_file_is_built_anew(params, caplog):
    files = built_data(params)
    Path(files["train_data"]).write_bytes(b"half")
    (data_dir(params) / "feature_vocab.json").unlink()
    built_data(params)
    assert "missing or damaged: " in caplog.text and len(pq.read_table(files["train_data"])) == 900
    assert (data_dir(params) / "feature_vocab.json").is_file()


@pytest.mark.parametrize("text", ['{"made_from": {"set', "[]", '{"made_from": 3}', '{"made_from": {"raw": []}}'])
def test_a_data_set_with_a_damaged_manifest_is_built_anew(params, caplog, text):
    built_data(params)
    (data_dir(params) / "build.json").write_text(text)
    vocabulary = (data_dir(params) / "feature_vocab.json").read_text()
    built_data({**params, "min_categr_count": 20})  # or other settings would take the old data
    assert "Rebuilding" in caplog.text and "its build.json is damaged" in caplog.text
    assert (data_dir(params) / "feature_vocab.json").read_text() != vocabulary


def test_a_changed_byte_in_a_built_file_is_noticed(params, caplog, monkeypatch):
    monkeypatch.setattr(common_files, "REMEMBERED_ABOVE", 1)  # as if it were large
    train = Path(built_data(params)["train_data"])
    before = train.read_bytes()
    flip_a_byte(train)
    built_data(params)
    assert "missing or damaged: train.parquet" in caplog.text and train.read_bytes() == before


def test_a_build_killed_while_its_files_are_moved_counts_as_not_built(params, monkeypatch):
    files = built_data(params)
    edit(raw(params), color="red")
    rename = Path.replace

    def killed(path, target):
        if path.name == "train.parquet":
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        built_data(params)
    monkeypatch.undo()
    built_data(params)
    assert len(set(pq.read_table(files["train_data"])["color"].to_pylist())) == 1


def test_paths_with_odd_characters_and_linked_folders_work(params, tmp_path):
    odd = tmp_path / "raw (1) ü"
    raw(params).parent.rename(odd)
    for split in ("train", "valid", "test"):
        params[f"{split}_data"] = str(odd / f"{split}.csv")
    (tmp_path / "elsewhere").mkdir()
    Path(params["data_root"]).mkdir()
    data_dir(params).symlink_to(tmp_path / "elsewhere")
    built_data(params)
    edit(odd / "valid.csv", color="red")
    built_data(params)
    assert (tmp_path / "elsewhere" / "train.parquet").is_file() and data_dir(params).is_symlink()
    assert sorted(path.name for path in Path(params["data_root"]).iterdir()) == [".shop.build.lock", "shop"]


def test_a_path_that_fuxictr_would_take_for_a_pattern_is_refused(params):
    params["train_data"] = "raw[1]/train.csv"
    with pytest.raises(UserError, match="for a pattern; rename the folder or file"):
        built_data(params)
