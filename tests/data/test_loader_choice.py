"""Which loader reads a data set, and what torchrun's processes refuse before anything is built."""

import gzip
from pathlib import Path

import psutil
import pytest

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data import loader_choice
from fuxictr_llm.data.loader_choice import check_shared, check_shared_before, loader_kind
from fuxictr_llm.experiment.preparation import prepare_data, prepare_run

COLUMNS = 7  # three categories, a sequence of three values, and a label
SIZE = 1200 * COLUMNS


@pytest.fixture
def experiment(configs):
    return load_experiment("FM_shop", configs)


@pytest.fixture
def room(monkeypatch):
    """Sets how many ids fit in memory, and that two processes of torchrun ask (here one asks alone)."""

    def set_to(ids, together=True):
        monkeypatch.setattr(loader_choice, "fits_in_memory", lambda rows, columns: rows * columns <= ids)
        monkeypatch.setattr(loader_choice, "under_torchrun", lambda: together)
        monkeypatch.setattr(loader_choice, "local_process_count", lambda: 1 + together)

    return set_to


def test_auto_takes_blocks_for_data_that_does_not_fit_and_says_so(experiment, room, caplog):
    run = prepare_data(experiment, "unused")
    caplog.set_level("INFO")
    room(SIZE, together=False)
    assert loader_kind(run.feature_map, {**run.params, "data_loader": "auto"}) == "memory"
    room(SIZE - 1, together=False)
    assert loader_kind(run.feature_map, {**run.params, "data_loader": "auto"}) == "blocks"
    assert f"1200 rows x {COLUMNS} columns do not fit in memory" in caplog.text
    for kind in ("memory", "blocks", "ray"):
        assert loader_kind(run.feature_map, {**run.params, "data_loader": kind}) == kind


def test_processes_refuse_it_before_the_data_set_is_built(experiment, room):
    params = {**experiment.params, "data_loader": "auto"}
    room(2 * SIZE)
    check_shared_before(params)
    room(2 * SIZE - 1)
    for kind in ("memory", "blocks"):
        check_shared_before({**params, "data_loader": kind})
    check_shared_before({**params, "prepare": "movielens"})  # the raw files are still to be made
    for refused, message in ((params, "set data_loader: blocks"), ({**params, "data_loader": "ray"}, "or blocks for")):
        with pytest.raises(UserError, match=message):
            check_shared_before(refused)
    room(2 * SIZE - 1, together=False)
    check_shared_before(params)
    assert not Path(params["data_root"], params["dataset_id"], "feature_map.json").exists()


def test_a_raw_file_that_cannot_be_read_is_left_to_building(experiment, room):
    packed = Path(f"{experiment.params['train_data']}.gz")
    packed.write_bytes(gzip.compress(b"color,city\nred,Rome\n")[:-12])
    experiment.params["train_data"] = str(packed)
    room(0)
    check_shared_before(experiment.params)
    with pytest.raises(UserError, match="train.csv.gz' cannot be read"):
        prepare_data(experiment, "unused")


def test_processes_refuse_it_before_a_language_model_is_asked(experiment, room):
    run = prepare_data(experiment, "unused")
    room(2 * SIZE)
    check_shared(run.feature_map, run.params)
    room(2 * SIZE - 1)
    with pytest.raises(UserError, match="set data_loader: blocks"):
        check_shared(run.feature_map, run.params)
    with pytest.raises(UserError, match="set data_loader: blocks"):
        prepare_run(experiment, "unused")
    prepare_run(experiment, "unused", encode_only=True)


def test_the_memory_rule():
    free = psutil.virtual_memory().available
    assert loader_choice.fits_in_memory(free // 100, 4) and not loader_choice.fits_in_memory(free // 4, 4)
