"""What can last over raw and built data says its stage, how much is done of how much, the rate and the time left."""

import gzip
import json
import re

import numpy as np
import polars as pl
import pytest

from fuxictr_llm.common import files
from fuxictr_llm.common.files import damaged_files, digest_of_file, digests_of
from fuxictr_llm.common.progress import quiet_if
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data import id_files, in_memory, sets
from fuxictr_llm.data.build import built_data
from fuxictr_llm.data.raw import RawSplit
from fuxictr_llm.data.sets import amazon
from fuxictr_llm.data.watched import watched

LINE = re.compile(r"(.+): +\d+% (\S+)/(\S+) \[(\d\d:)+\d\d<(\d\d:)*[\d?]+, +\S+?(rows|columns|B)/s\]|.*s/columns\]")


@pytest.fixture
def shown(capfd, shown_at_once):
    """The stages that were shown since the last call: name -> the count of each line."""

    def stages():
        out, err = capfd.readouterr()
        assert not out
        by_name = {}
        for line in err.splitlines():
            assert LINE.fullmatch(line), line
            name, counts = re.match(r"(.+): +\d+% (\S+) \[", line).groups()
            by_name.setdefault(name, []).append(counts)
        return by_name

    return stages


@pytest.fixture
def large(tmp_path):
    """A csv file of more rows than polars reads at once."""
    path = tmp_path / "large.csv"
    rows = 200_000
    draw = np.random.default_rng(0)
    columns = {"click": draw.integers(0, 2, rows), "color": draw.integers(0, 50, rows), "size": draw.random(rows)}
    pl.DataFrame(columns).write_csv(path)
    return path


@pytest.fixture
def params(configs, large):
    params = load_experiment("DeepFM_shop", configs).params
    cols = [{"name": "color", "active": True, "dtype": "str", "type": "categorical"}]
    cols += [{"name": "size", "active": True, "dtype": "float", "type": "numeric", "fill_na": 0.0}]
    return {**params, "feature_cols": cols, "train_data": str(large), "valid_data": str(large), "test_data": None}


def test_a_build_shows_every_pass(params, shown, monkeypatch):
    monkeypatch.setattr(files, "BLOCK", 2**20)
    built_data(params)
    stages = shown()
    assert {
        "hashing large.csv",
        "checking large.csv",
        "counting values of train",
        "building train",
        "building valid",
    } <= stages.keys()
    assert stages["building train"] == ["100000/200000", "200000/200000"]
    for name in ("checking large.csv", "counting values of train"):
        assert stages[name][-1] == "200000/200000"


def test_vocabularies_are_counted_by_column(configs, shown):
    built_data(load_experiment("DeepFM_shop", configs).params)
    assert shown()["making vocabularies"] == ["1/4", "2/4", "3/4", "4/4"]


@pytest.mark.parametrize("why", ["short", "verbose 0"])
def test_nothing_is_shown(params, why, capfd, request):
    if why == "verbose 0":
        request.getfixturevalue("shown_at_once")
    with quiet_if(why == "verbose 0"):
        built_data(params)
    assert capfd.readouterr() == ("", "")


def test_the_built_data_is_the_same(params, shown_at_once, monkeypatch):
    built = {}
    for name in ("watched", "plain"):
        if name == "plain":
            monkeypatch.setattr("fuxictr_llm.data.watched.counting", lambda frame, _: frame)
        made = {**params, "data_root": f"data_{name}"}
        built[name] = pl.read_parquet(built_data(made)["train_data"])
    assert built["watched"].equals(built["plain"])


def test_rows_are_counted_as_they_are_read(large, shown):
    with watched(pl.scan_csv(large), "reading", 1) as frame:
        read = frame.select("color").collect(engine="streaming")
    assert read.equals(pl.read_csv(large).select("color"))
    with watched(pl.scan_csv(large), "reading", 10**6) as frame:
        frame.select(pl.col("size").sum()).collect(engine="streaming")
    assert shown()["reading"][-1] == "200000/200000"  # what was an estimate is known then


def test_the_estimate_of_rows_is_near(large, params):
    assert RawSplit([large], params).about_rows == pytest.approx(200_000, rel=0.02)
    assert RawSplit([large, large], {**params, "n_rows": 10}).about_rows == 20


def test_files_are_hashed_with_one_progress(tmp_path, shown, monkeypatch):
    monkeypatch.setattr(files, "BLOCK", 100)
    folder = tmp_path / "hashed"
    folder.mkdir()
    for name in "ab":
        (folder / name).write_bytes(bytes(1000))
    noted = digests_of(folder)
    assert shown()["hashing 2 files"][::10] == ["100/2.00k", "1.10k/2.00k"]
    assert damaged_files(folder, noted) == [] and shown().keys() == {"hashing 2 files"}
    digest_of_file(folder / "a")
    assert shown()["hashing a"][-1] == "1.00k/1.00k"


def test_what_is_known_of_a_file_does_not_count_for_the_rate(tmp_path, shown, monkeypatch):
    monkeypatch.setattr(files, "REMEMBERED_ABOVE", 100)
    monkeypatch.setattr(files, "BLOCK", 100)
    for name in "ab":
        (tmp_path / name).write_bytes(bytes(1000))
    digest_of_file(tmp_path / "a")
    shown()
    files.digests_of_files([tmp_path / "a", tmp_path / "b"])
    assert shown()["hashing 2 files"][0] == "1.10k/2.00k"


@pytest.mark.parametrize("packed", [False, True])
def test_originals_are_read_and_written_with_progress(tmp_path, shown, packed, monkeypatch):
    monkeypatch.setattr(sets, "LINES", 10)
    monkeypatch.setattr(amazon, "CHUNK", 100)
    reviews = [
        {"parent_asin": f"i{n % 9}", "user_id": f"u{n}", "timestamp": n, "rating": n % 5 + 1} for n in range(5000)
    ]
    paths = []
    for name, rows in {"reviews": reviews, "items": [{"parent_asin": f"i{n}"} for n in range(9)]}.items():
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        paths.append(tmp_path / (f"{name}.jsonl.gz" if packed else f"{name}.jsonl"))
        paths[-1].write_bytes(gzip.compress(text) if packed else text)
    tables = amazon.prepare(*paths, "raw")
    assert sum(len(table) for table in tables["train"]) == 4000
    stages = shown()
    assert stages["writing train"][:2] == ["100/4000", "200/4000"]
    assert f"reading {paths[0].name}" in stages


def test_built_data_is_loaded_with_progress(params, shown):
    built = built_data(params)
    shown()
    in_memory.read_columns(in_memory.data_files(built["train_data"]), ["click", "color", "size"])
    assert shown()["reading train.parquet"] == ["1/3", "2/3", "3/3"]
    assert in_memory.count_rows(built["train_data"]) == 200_000


def test_slices_are_those_of_the_build(params, monkeypatch, shown):
    monkeypatch.setattr(id_files, "SLICE_ROWS", 50_000)
    built_data(params)
    assert shown()["building train"] == ["50000/200000", "100000/200000", "150000/200000", "200000/200000"]
