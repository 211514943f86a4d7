"""Two processes of torchrun on the CPU train, tune, evaluate, resume and refuse as one does."""

import csv
import itertools
import os
import subprocess
import sys
from pathlib import Path

import cases_of_devices as cases
import numpy as np
import pytest
import torch

from fuxictr_llm.__main__ import main
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import read_json
from fuxictr_llm.data.shares import share_of
from fuxictr_llm.host.batches import rows_of, some_rows, synthetic_long_batch
from fuxictr_llm.model_zoo.LLaCTR.vector_file import read_field_vectors
from fuxictr_llm.training import devices
from support import as_arguments, edit
from support_long import long_feature_map

pytestmark = pytest.mark.xdist_group("torchrun")  # it starts once
SECONDS = 240  # at most; it takes a tenth of that
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
TESTS = Path(__file__).parents[1]
FIELDS = ["color", "city", "user", "tags"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_llm):
    from conftest import write_configs

    folder = tmp_path_factory.mktemp("devices")
    configs = write_configs(folder)
    (folder / "language_model").symlink_to(tiny_llm)
    entities = "entities: {user: {id: user, text: []}, shirt: {id: color, text: [city]}}"
    edit(folder / "words.yaml", "fields:", f"{entities}\nfields:")
    with (configs / "model_config.yaml").open("a") as file:
        file.write("MMoE: {num_experts: 2, expert_hidden_units: [8], tower_hidden_units: [4], gate_hidden_units: []}\n")
    return folder


@pytest.fixture(scope="module")
def tuning(folder, tiny_settings):
    """The arguments of a command that tunes the language model; without dropout, which differs between processes."""
    settings = as_arguments({**tiny_settings, "ssft_epochs": 4, "lora_dropout": 0.0})
    return ["encode", "--config", str(folder / "my_configs"), "--expid", "FM_LLaCTR_shop", *settings]


@pytest.fixture(scope="module")
def launched(folder, tuning):
    """Exit code and errors of torchrun with two processes, which compute all cases and then fail in a run."""
    changes = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS), "FUXICTR_LLM_CACHE": str(folder / "cache_of_two")}
    command = [*TORCHRUN, str(TESTS / "cases_of_devices.py"), str(folder), *tuning]
    environment = {**os.environ, **changes, "TORCH_CPP_LOG_LEVEL": "ERROR"}
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            _, errors = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            process.terminate()  # torchrun ends its processes
            raise
    return process.returncode, errors


@pytest.fixture(scope="module")
def together(folder, launched):
    """The results of all cases, in each of two processes."""
    assert (folder / "results.pt").exists(), launched[1]
    return torch.load(folder / "results.pt", weights_only=False)


@pytest.fixture
def alone(folder, monkeypatch):
    """Computes a case in this process."""
    own = folder / "alone"
    own.mkdir(exist_ok=True)
    return lambda name: cases.compute(own, [name])[name]


@pytest.mark.parametrize("name", cases.TRAININGS)
def test_two_processes_train_as_one(name, together, alone):
    assert_close(alone(name), together[0][name], 1e-5)
    assert_close(together[0][name], together[1][name], 0)


@pytest.mark.parametrize("name", ["accumulated", "left_out", "unused"])
def test_summed_gradients_rows_left_out_and_parameters_without_gradient(name, together, alone):
    assert_close(alone(name), together[0][name], 1e-5)
    assert not together[0]["unused"]["moved"].any()


@pytest.mark.parametrize("case", ["unapplied", "unapplied rows"])
def test_gradients_that_are_not_applied_yet_are_saved_as_one_process_has_them(case, together, alone):
    assert any(name.endswith(".gradient") for name in together[0][case])
    assert_close(alone(case), together[0][case], 1e-5)
    assert_close(together[0][case], together[1][case], 0)


def test_long_sequences(together, alone):
    one, two = alone("long"), together[0]["long"]
    assert one.pop("metrics") == pytest.approx(two.pop("metrics"), abs=1e-5)
    assert_close(one, two, 1e-5)


def test_a_language_model_is_tuned(together, tuning, capsys):
    paths = [results["tuned"] for results in together]
    assert len(paths[0]) == 1 and not paths[1]  # the main process says where the vectors are
    assert main(tuning) == 0
    alone = capsys.readouterr().out.strip()
    assert Path(alone).parent.name != Path(*paths[0]).parent.name  # with dropout they would differ
    one, two = read_field_vectors(alone, FIELDS), read_field_vectors(*paths[0], FIELDS)
    assert main([*tuning, "--set", "field_vectors=llm_untuned"]) == 0
    untuned = read_field_vectors(capsys.readouterr().out.strip(), FIELDS)
    assert (one - two).abs().max() < 1e-3 < 0.1 * (one - untuned).abs().max()


def test_each_row_is_in_one_share_and_the_order_is_that_of_one_process(together):
    first, second = (results["parts"] for results in together)
    for batch, share, other in zip(first["all"], first["shares"], second["shares"], strict=True):
        if len(batch) < 4:  # too few for two processes: both take all of it
            assert share.equal(batch) and other.equal(batch)
        else:
            assert torch.cat([share, other]).equal(batch) and abs(len(share) - len(other)) <= 1
    in_turn = [*first["in_turn"], *second["in_turn"]]
    assert len(in_turn) == len(first["all"])
    assert all(batch.equal(first["all"][2 * index]) for index, batch in enumerate(first["in_turn"]))
    assert all(batch.equal(first["all"][2 * index + 1]) for index, batch in enumerate(second["in_turn"]))
    assert len(first["later"]) == len(first["all"]) - 2


def test_each_row_is_measured_once(together, alone):
    one = alone("measured")
    assert one == together[0]["measured"] == together[1]["measured"]
    assert one[cases.ROWS]["AUC"] != 0.5


def test_an_entry_of_the_cache_is_made_once_by_the_main_process_or_by_all(together):
    assert together[0]["cached"] == {False: [0], True: [0, 1]}


def test_training_goes_on_as_if_it_had_not_been_interrupted(together):
    for results in together:
        assert results["resumed"]["checkpoints"] == ["step-000000008"]  # within the second epoch of 5
        assert_close(results["resumed"]["whole"], results["resumed"]["interrupted"], 0)


def test_whole_runs(folder, together, alone, monkeypatch):
    first, second = (results["runs"] for results in together)
    for expid, result in first.items():
        assert result["metrics"] == second[expid]["metrics"] and result["hardware"]["processes"] == 2
    assert set(first["FM_ELEC_shop:staged"]["networks"]) == {"plain"}
    assert set(first["FM_ELEC_shop:joint"]["networks"]) == {"twin"}
    with (folder / "my_configs.csv").open() as file:
        assert len([*csv.reader(file)]) == len(first)
    records = [read_json(path) for path in (folder / "checkpoints" / "shop").glob("*/*.run.json")]
    assert len(records) == len(first)
    assert not [*(folder / "checkpoints" / "shop").glob("*/*.checkpoint")]
    (folder / "alone").mkdir(exist_ok=True)
    for name in ("my_configs", "language_model"):
        if not (folder / "alone" / name).exists():
            (folder / "alone" / name).symlink_to(folder / name)
    monkeypatch.chdir(folder / "alone")
    one = alone("runs")
    for expid, result in one.items():
        assert result["metrics"]["test"] == pytest.approx(first[expid]["metrics"]["test"], abs=2e-3)
        assert result["hardware"]["processes"] == 1
    for expid in cases.OF_TEXTS:  # one process asks the language model, and aligns: all that it gives is the same
        assert own_of(one[expid]["notes"]) == own_of(first[expid]["notes"]) == own_of(second[expid]["notes"]) != {}


def own_of(notes):
    """The notes of a run without the places of files."""
    if isinstance(notes, dict):
        return {key: own_of(value) for key, value in notes.items() if key not in ("path", "language_model")}
    return notes


def test_what_processes_cannot_share_is_refused(together):
    messages, others = (results["refused"] for results in together)
    assert messages == others
    expected = {
        "OwnStep": "has a training step of its own: train it in one process, without torchrun",
        "OwnLoop": "has a training loop of its own: train it in one process, without torchrun",
        "OwnMeasure": "measures by an evaluate of its own: train it in one process, without torchrun",
        "unordered": "data_loader: ray reads the rows in another order",
        "batch_size": "batch_size 1 is that of all processes together, and torchrun started 2",
        "data_loader": "set data_loader: memory",
        "auto": "set data_loader: blocks",
        "main fails": "no such thing",
    }
    for name, words in expected.items():
        assert words in messages[name]


def test_an_error_in_one_process_ends_all_with_one_line(together, launched):
    code, errors = launched
    own, _, of_torchrun = errors.partition("torch/distributed/elastic")  # where torchrun begins to speak
    assert code and own.count("error: ") == own.count("error: the disk of process 1 is full") == 1
    assert "Traceback" not in own and "exitcode  : 2" in of_torchrun


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["leaderboard"], "'leaderboard' does not share its work among torchrun's processes"),
        (["encode", "--expid", "FM_ELEC_shop"], "encode of ELEC does not share its work"),
        (["encode", "--values", "color", "--expid", "FM_shop"], "--values does not share its work"),
    ],
)
def test_other_commands_are_refused(arguments, words, configs, monkeypatch, capsys):
    from fuxictr_llm import __main__
    from fuxictr_llm.commands import encode

    if arguments[0] == "encode":
        arguments = [*arguments, "--config", str(configs)]
    for module in (__main__, encode):
        monkeypatch.setattr(module, "under_torchrun", lambda: True)
    assert __main__.main(arguments) == 2
    assert words in capsys.readouterr().err


def test_rows_are_refused_on_several_gpus(monkeypatch):
    params = {"batch_size": 8, "embedding_update": "rows", "gpu": 0}
    devices.check_together(params)
    monkeypatch.setattr(devices, "under_torchrun", lambda: True)
    devices.check_together({**params, "gpu": -1})
    devices.check_together({**params, "embedding_update": "dense"})
    with pytest.raises(UserError, match="embedding_update: rows: GPUs share no gradients of rows .* set embedding_upd"):
        devices.check_together(params)


def test_shares_cover_a_batch():
    for count in (1, 2, 3, 8):
        for rows in (2 * count, 2 * count + 1, 5 * count - 1, 64):
            shares = [share_of(rows, index, count) for index in range(count)]
            assert shares[0].start == 0 and shares[-1].stop == rows
            assert all(one.stop == after.start for one, after in itertools.pairwise(shares))
            assert min(share.stop - share.start for share in shares) >= 2
        assert share_of(2 * count - 1, count - 1, count) == slice(0, 2 * count - 1)


def test_some_rows_of_a_long_batch():
    batch = synthetic_long_batch(long_feature_map(), rows=6, length=3)
    rows, items, mask = some_rows(batch, slice(2, 5))
    assert rows_of((rows, items, mask)) == 3
    places = 4  # three items of the history, and the target
    for name, column in items.items():
        assert column.equal(batch[1][name][2 * places : 5 * places])


def assert_close(one, two, tolerance):
    assert one.keys() == two.keys()
    for name, value in one.items():
        difference = np.abs(value.double().numpy() - two[name].double().numpy()).max(initial=0)
        assert difference <= tolerance, (name, difference)
