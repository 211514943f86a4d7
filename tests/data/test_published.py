"""Published files: what is missing is named with its source, what is there is checked, linked and remembered."""

import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from fuxictr_llm.__main__ import main
from fuxictr_llm.common import files
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of_file
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.config.sources import packaged_configs
from fuxictr_llm.data.prepare import check_published, prepare_raw_data
from raw_forms import write_published

NAMES = ("train.csv", "valid.csv", "test.csv")


@pytest.fixture
def download():
    """A folder with small files in the form of Frappe, and a config that takes them for the published ones."""
    params = load_experiment("FM_frappe").params
    write_published(params)
    folder = Path("download")
    Path("data/raw/frappe_x1").rename(folder)
    shutil.rmtree("data")
    entry = yaml.safe_load((packaged_configs() / "dataset_config" / "frappe.yaml").read_text())["frappe_x1"]
    entry["md5"] = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in NAMES}
    Path("conf/method_config").mkdir(parents=True)
    Path("conf/dataset_config.yaml").write_text(yaml.safe_dump({"frappe_x1": entry}, sort_keys=False))
    return folder


def prepare(*more):
    return main(["prepare", "frappe_x1", "--config", "conf", *map(str, more)])


def test_missing_files_are_named_with_page_digests_and_command(capsys):
    assert main(["run", "--expid", "DeepFM_LLaCTR_criteo"]) == 2
    error = capsys.readouterr().err.split("error: ")[1]
    md5 = load_experiment("FM_criteo").params["md5"]
    assert all(f"{name:9}  md5 {md5[name]}" in error for name in NAMES)
    for part in (
        "/data/raw/criteo_x1' lacks train.csv, valid.csv, test.csv",
        "huggingface.co/datasets/reczoo/Criteo_x1",
        "fuxictr_llm prepare criteo_x1 --raw DIR",
    ):
        assert part in error


def test_published_files_are_checked_and_linked_once(download, capsys):
    assert prepare("--raw", download) == 0
    printed = capsys.readouterr().out
    assert [line.split() for line in printed.splitlines()[1:4]] == [
        ["train.csv", "240", "as", "published"],
        ["valid.csv", "60", "as", "published"],
        ["test.csv", "60", "as", "published"],
    ]
    raw = Path("data/raw/frappe_x1")
    assert all((raw / name).is_symlink() and (raw / name).samefile(download / name) for name in NAMES)
    noted = json.loads((raw / "prepared.json").read_text())
    assert noted["files"][0] == {"file": "train.csv", "rows": 240, "md5": digest_of_file(download / "train.csv", "md5")}
    assert prepare("--raw", download) == 0 and prepare("--raw", raw) == 0
    assert main(["run", "--config", "conf", "--expid", "FM_frappe_x1", "--set", "epochs=1"]) == 0
    record = json.loads(next(Path("checkpoints/frappe_x1").glob("*/*.run.json")).read_text())
    assert "not_published" not in record["stages"]["prepare data"]


def test_another_content_is_refused_and_nothing_linked(download, capsys):
    with (download / "valid.csv").open("a") as file:
        file.write("1,0,0,0,0,0,0,0,0,0,0\n")
    assert prepare("--raw", download) == 2
    error = capsys.readouterr().err
    got = digest_of_file(download / "valid.csv", "md5")
    assert f"valid.csv' has md5 {got}, the published file " in error and "download it again" in error
    assert not Path("data").exists()


def test_files_of_the_users_own_are_used_with_one_warning_and_noted(download, caplog, capsys):
    raw = Path("data/raw/frappe_x1")
    raw.parent.mkdir(parents=True)
    download.rename(raw)
    assert main(["run", "--expid", "FM_frappe", "--set", "epochs=1"]) == 0
    assert capsys.readouterr().err.count("not the published file (another name or md5)") == 1
    record = json.loads(next(Path("checkpoints/frappe_x1").glob("*/*.run.json")).read_text())
    assert record["stages"]["prepare data"]["not_published"] == list(NAMES)


def test_files_of_other_names_are_not_the_published_ones(download):
    raw = Path("data/raw/frappe_x1")
    raw.parent.mkdir(parents=True)
    download.rename(raw)
    (raw / "train.csv").rename(raw / "mine.csv")
    params = load_experiment("FM_frappe", overrides={"train_data": str(raw / "mine.csv")}).params
    assert check_published(params)["not_published"] == ["valid.csv", "test.csv", "mine.csv"]


def test_what_lies_in_the_way_is_kept(download, capsys):
    raw = Path("data/raw/frappe_x1")
    raw.mkdir(parents=True)
    (raw / "train.csv").symlink_to("gone.csv")  # a link to a folder that was removed
    (raw / "test.csv").write_bytes((download / "test.csv").read_bytes())
    assert prepare("--raw", download) == 0
    assert (raw / "train.csv").samefile(download / "train.csv") and not (raw / "test.csv").is_symlink()
    (raw / "test.csv").write_text("mine")
    assert prepare("--raw", download) == 2
    assert "is another file than 'download/test.csv'; move it away" in capsys.readouterr().err
    assert (raw / "test.csv").read_text() == "mine"


def test_a_file_that_is_no_table_is_named(download, capsys):
    (download / "train.csv").write_text("")
    config = yaml.safe_load(Path("conf/dataset_config.yaml").read_text())
    config["frappe_x1"]["md5"]["train.csv"] = None
    Path("conf/dataset_config.yaml").write_text(yaml.safe_dump(config))
    assert prepare("--raw", download) == 2
    assert "train.csv' cannot be read as csv: empty CSV" in capsys.readouterr().err


def test_vectors_without_a_published_digest_must_be_there():
    params = load_experiment("FM_kuaivideo").params
    write_published(params)
    assert set(prepare_raw_data(params)["not_published"]) == {"train.csv", "test.csv"}
    Path("data/raw/kuaivideo_x1/item_visual_emb_dim64.h5").unlink()
    with pytest.raises(UserError, match="lacks item_visual_emb_dim64.h5"):
        prepare_raw_data(params)


def test_both_digests_of_a_large_file_are_remembered(tmp_path, monkeypatch):
    path, hashed = tmp_path / "large", []
    path.write_bytes(b"x" * 100)
    monkeypatch.setattr(files, "REMEMBERED_ABOVE", 10)
    hash_file = files._hash
    monkeypatch.setattr(files, "_hash", lambda *args: hashed.append(args[1]) or hash_file(*args))
    for algorithm in ("sha256", "md5", "sha256", "md5"):
        assert digest_of_file(path, algorithm) == hashlib.new(algorithm, b"x" * 100).hexdigest()
    assert hashed == ["sha256", "md5"]
    path.write_bytes(b"y" * 101)
    assert digest_of_file(path, "md5") == hashlib.md5(b"y" * 101).hexdigest()


def test_page_and_digests_change_neither_run_nor_built_data():
    plain = load_experiment("FM_frappe")
    other = load_experiment("FM_frappe", overrides={"md5": None, "download": "elsewhere"})
    assert other.sha256 == plain.sha256 and not other.changed
    with pytest.raises(UserError, match="config key 'md5'"):
        load_experiment("FM_frappe", overrides={"md5": ["train.csv"]})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["prepare"], "error: prepare needs a data set's name or --expid"),
        (["prepare", "frappe", "--expid", "FM_frappe"], "error: prepare needs a data set's name or --expid"),
        (["prepare", "frapp"], "error: unknown data set 'frapp' .*did you mean 'frappe'"),
        (["prepare", "frappe", "--raw", "nowhere"], "error: --raw 'nowhere' is no folder"),
        (["prepare", "frappe", "--raw", "."], r"error: data set 'frappe_x1': --raw '\.' lacks train.csv"),
        (["prepare", "frappe"], "error: data set 'frappe_x1': '/.*/data/raw/frappe_x1' lacks train.csv"),
        (["prepare", "movielens1m", "--raw", "."], r"error: data set 'movielens1m': raw_data folder '\.' lacks ratings.dat"),
        (["prepare", "own", "--config", "conf", "--raw", "."], "error: data set 'own' has neither prepare: nor md5:"),
    ],
)  # fmt: skip
def test_wrong_calls_of_prepare(args, message, capsys):
    Path("conf/method_config").mkdir(parents=True)
    own = {
        "data_root": "data",
        "data_format": "csv",
        "train_data": "a.csv",
        "label_col": {"name": "y", "dtype": "float"},
    }
    own["feature_cols"] = [{"name": "a", "active": True, "dtype": "str", "type": "categorical"}]
    Path("conf/dataset_config.yaml").write_text(yaml.safe_dump({"own": own}))
    assert main(args) == 2
    assert re.match(message, capsys.readouterr().err)
