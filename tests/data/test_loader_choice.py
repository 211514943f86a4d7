"""Which loader reads a data set, and what torchrun's processes refuse before anything is built."""

from pathlib import Path

import pytest

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data import loader_choice
from fuxictr_llm.data.loader_choice import check_shared, check_shared_before, reads_in_memory
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


def test_auto_takes_ray_for_data_that_does_not_fit_and_says_so(experiment, room, caplog):
    run = prepare_data(experiment, "unused")
    caplog.set_level("INFO")
    room(SIZE, together=False)
    assert reads_in_memory(run.feature_map, {**run.params, "data_loader": "auto"})
    room(SIZE - 1, together=False)
    assert not reads_in_memory(run.feature_map, {**run.params, "data_loader": "auto"})
    assert f"1200 rows x {COLUMNS} columns do not fit in memory" in caplog.text
    assert reads_in_memory(run.feature_map, {**run.params, "data_loader": "memory"})


def test_processes_refuse_ray_before_the_data_set_is_built(experiment, room):
    params = {**experiment.params, "data_loader": "auto"}
    room(2 * SIZE)
    check_shared_before(params)
    room(2 * SIZE - 1)
    check_shared_before({**params, "data_loader": "memory"})
    check_shared_before({**params, "prepare": "movielens"})  # the raw files are still to be made
    for refused in (params, {**params, "data_loader": "ray"}):
        with pytest.raises(UserError, match="set data_loader: memory, or start fewer processes"):
            check_shared_before(refused)
    room(2 * SIZE - 1, together=False)
    check_shared_before(params)
    assert not Path(params["data_root"], params["dataset_id"], "feature_map.json").exists()


def test_a_raw_file_that_cannot_be_read_is_left_to_building(experiment, room):
    Path(experiment.params["train_data"]).write_bytes(b'color,city\n"')
    room(0)
    with pytest.raises(UserError, match="cannot"):
        check_shared_before(experiment.params)
        prepare_data(experiment, "unused")


def test_processes_refuse_ray_before_a_language_model_is_asked(experiment, room):
    run = prepare_data(experiment, "unused")
    room(2 * SIZE)
    check_shared(run.feature_map, run.params)
    room(2 * SIZE - 1)
    with pytest.raises(UserError, match="set data_loader: memory"):
        check_shared(run.feature_map, run.params)
    with pytest.raises(UserError, match="set data_loader: memory"):
        prepare_run(experiment, "unused")
    prepare_run(experiment, "unused", encode_only=True)
