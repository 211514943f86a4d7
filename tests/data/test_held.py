"""A run keeps its build of the data set: who would build it in another way waits, or the run ends with an error."""

import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import read_json
from fuxictr_llm.common.readers import reading
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.build import built_data
from fuxictr_llm.data.held import holding
from fuxictr_llm.data.loader import make_loaders
from fuxictr_llm.experiment import preparation
from fuxictr_llm.experiment.preparation import make_data, prepare_data
from fuxictr_llm.experiment.run import run_experiment
from support_process import run_code

BUILDS = """
import logging
from pathlib import Path
from fuxictr_llm.common import locks
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.build import built_data

locks.SECONDS_IN_SILENCE = 0
logging.warning = lambda text, *parts: Path("said.txt").open("a").write(text % parts)
built_data(load_experiment("DeepFM_shop", "my_configs", overrides={"n_rows": 100}).params)
"""


def until(holds, seconds=120):
    """Wait until something holds."""
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.02)
    assert holds()


def test_another_build_waits_until_a_run_has_ended(configs, monkeypatch):
    ended = []
    other = threading.Thread(target=lambda: ended.append(run_code(BUILDS)))

    def asks_a_language_model(run, params):
        if not other.ident:  # what takes hours, between the feature map and the first batch
            other.start()
            until(lambda: ended or Path("said.txt").exists())
        return {}

    monkeypatch.setattr(preparation, "prepare_value_vectors", asks_a_language_model)
    record = run_experiment(load_experiment("DeepFM_shop", configs)).record
    other.join(120)
    assert ended and ended[0].returncode == 0, ended
    assert record["data"]["rows"]["train"] == 900 and record["stages"]["train"]["rows"] == 2 * 900
    assert "Waiting for process" in Path("said.txt").read_text() and "data/shop" in Path("said.txt").read_text()
    assert read_json("data/shop/build.json")["rows"]["train"] == 100
    assert not list(Path("data").glob("*.json"))


def test_runs_that_need_the_same_build_do_not_wait_for_each_other(configs):
    params = load_experiment("DeepFM_shop", configs).params
    with holding(params):
        built_data(params)
        code = BUILDS.replace('{"n_rows": 100}', "{}")
        assert run_code(code).returncode == 0 and not Path("said.txt").exists()


def test_two_that_would_build_it_in_two_ways_come_one_after_the_other(configs):
    params = load_experiment("DeepFM_shop", configs).params
    built_data(params)
    ends = []
    threads = [
        threading.Thread(target=lambda rows=rows: ends.append(run_code(BUILDS.replace("100", str(rows)))))
        for rows in (100, 200, 300)
    ]
    with holding(params):
        for thread in threads:
            thread.start()
        until(lambda: Path("said.txt").exists())
        assert pq.read_metadata("data/shop/train.parquet").num_rows == 900
    for thread in threads:
        thread.join(120)
    assert [end.returncode for end in ends] == [0, 0, 0]


@pytest.mark.parametrize("is_fuxictrs", [False, True])
def test_data_that_is_replaced_all_the_same_is_an_error(configs, monkeypatch, is_fuxictrs):
    experiment = load_experiment("DeepFM_shop", configs)
    built_data(experiment.params)
    if is_fuxictrs:
        Path("data/shop/build.json").unlink()
    run = prepare_data(experiment, "unused")
    make_loaders(run.feature_map, run.params, "train")
    Path("data/shop/build.json").unlink(missing_ok=True)
    Path("data/shop/feature_map.json").unlink()  # as a FuxiCTR that builds it in place does
    make_data(load_experiment("DeepFM_shop", configs, overrides={"n_rows": 100}).params, run.stages)
    if is_fuxictrs:
        Path("data/shop/build.json").unlink()
    with pytest.raises(UserError, match=r"'.*data/shop' was replaced while this run used it; run it again"):
        make_loaders(run.feature_map, run.params, "train")


def test_who_cannot_lock_goes_on(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with reading(tmp_path / "file" / "x.lock", "it") as lock:
        assert lock.alone()
        lock.share()
