"""Trackers get the curves of a run, change nothing of it, and go on where a killed run goes on."""

import sys
from pathlib import Path

import pytest
import torch

from fuxictr_llm.__main__ import main
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.experiment.run import run_experiment
from fuxictr_llm.training.checkpoints import Checkpoints
from fuxictr_llm.training.listener import Evaluation
from fuxictr_llm.training.loop import fit
from fuxictr_llm.training.trackers import Trackers
from support_loop import Rows, make

TRACKED = {"trackers": ["tensorboard"]}


class Killed(BaseException):
    """In place of SIGKILL."""


class DyingRows(Rows):
    """Rows that end the process before their n-th batch."""

    survived = 0

    def __iter__(self):
        for batch in super().__iter__():
            self.survived -= 1
            if self.survived < 0:
                raise Killed
            yield batch


def curves(folder):
    """Tag -> [(step, value)] of a run's folder."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = events.EventAccumulator(str(folder))
    found.Reload()
    return {tag: [(point.step, point.value) for point in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_a_tracked_run_is_the_same_run_with_curves(configs):
    pytest.importorskip("tensorboard")
    tracked, plain = (load_experiment("FM_shop", configs, overrides=changes) for changes in (TRACKED, {}))
    assert tracked.sha256 == plain.sha256 and not tracked.changed
    first = run_experiment(tracked)
    second = run_experiment(plain, fresh=True)
    assert first.record["metrics"] == second.record["metrics"]
    for name, value in second.model.state_dict().items():
        assert torch.equal(value, first.model.state_dict()[name])
    (folder,) = Path("checkpoints/shop").glob("*/tensorboard/*")
    assert folder.name == tracked.full_id
    found, epochs = curves(folder), first.record["stages"]["train"]["epochs"]
    assert {tag: len(points) for tag, points in found.items()} == {
        "train/loss": epochs,
        "train/learning_rate": epochs,
        "valid/AUC": epochs,
        "test/AUC": 1,
        "test/logloss": 1,
    }
    assert [step for step, _ in found["valid/AUC"]] == list(range(1, epochs + 1))
    best = first.record["best_epoch"]
    assert found["valid/AUC"][best - 1][1] == pytest.approx(first.record["metrics"]["valid"]["AUC"], abs=2e-6)
    assert found["test/AUC"] == [(epochs, pytest.approx(first.record["metrics"]["test"]["AUC"], abs=2e-6))]
    run_experiment(tracked, fresh=True)  # replaces its curves
    assert len(curves(folder)["valid/AUC"]) == epochs


@pytest.mark.parametrize("eval_steps", [None, 2])
def test_a_killed_run_goes_on_in_its_curves(eval_steps, tmp_path, monkeypatch):
    files = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    # Files of one second are read in the order of their names, which end with this count.
    monkeypatch.setattr(files, "_global_uid", files.AtomicCounter(1000))

    def train(name, survived=10**6):
        model, rows, params = make("DIN", None, tmp_path / name, eval_steps=eval_steps)
        rows = DyingRows(rows.batches)
        rows.survived = survived
        with (
            Checkpoints(tmp_path / name / "checkpoint", {}, 0) as checkpoints,
            Trackers(["tensorboard"], tmp_path / name, "mine", -1) as trackers,
        ):
            fit(model, rows, rows.batches, params, checkpoints, listener=trackers)
            trackers.tested({"AUC": 0.5})
        return curves(tmp_path / name / "tensorboard" / "mine")

    whole = train("whole")
    assert [step for step, _ in whole["valid/AUC"]] == list(range(1, len(whole["valid/AUC"]) + 1))
    for survived in (1, 4, 5):
        with pytest.raises(Killed):
            train("killed", survived)
    assert train("killed") == whole
    again = train("killed")  # nothing is left to train; the last point is there once more
    assert set(again.pop("test/AUC")) == set(whole.pop("test/AUC")) and again == whole


def test_what_was_logged_after_the_last_checkpoint_is_replaced(tmp_path):
    pytest.importorskip("tensorboard")
    for done, value in ((0, 0.5), (1, 0.7)):
        with Trackers(["tensorboard"], tmp_path, "mine", -1) as trackers:
            evaluations = [Evaluation(number, 0.6, {"AUC": value}, 1e-3) for number in range(1, 4)]
            trackers.begins(evaluations[:done])
            for evaluation in evaluations[done:]:
                trackers.evaluated(evaluation)
    found = curves(tmp_path / "tensorboard" / "mine")
    assert [(step, round(value, 3)) for step, value in found["valid/AUC"]] == [(1, 0.5), (2, 0.7), (3, 0.7)]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", "unknown tracker 'tensorbord' in trackers; did you mean 'tensorboard'?"),
        ("all", "unknown tracker 'all' in trackers"),
        ("comet_ml", "tracker 'comet_ml' is not installed: pip install comet_ml, or leave it out of trackers"),
    ],
)
@pytest.mark.parametrize("command", ["run --expid FM_shop", "leaderboard --backbones FM --datasets shop --out board"])
def test_a_tracker_that_is_not_there_ends_the_command_before_it_begins(command, name, message, configs, capsys):
    arguments = [*command.split(), "--config", str(configs), "--set", f"trackers=[{name}]"]
    assert main(arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert not Path("checkpoints").exists() and not Path("board/runs").exists()


def test_the_extra_is_named(monkeypatch):
    from accelerate import tracking

    monkeypatch.setattr(tracking, "_available_trackers", [])
    with pytest.raises(UserError, match=r"tracker 'tensorboard' is not installed: pip install 'fuxictr-llm\[tensor"):
        load_tracked()


def load_tracked():
    from fuxictr_llm.config.trackers import check_trackers

    check_trackers(["tensorboard"])


def fake_tracker(**methods):
    from accelerate.tracking import GeneralTracker

    def nothing(self, *_, **__):
        """Does nothing."""

    parts = {"name": "mine", "requires_logging_directory": False, "tracker": None, "start": nothing, "log": nothing}
    return type("Mine", (GeneralTracker,), {**parts, "__init__": nothing, "finish": nothing, **methods})


def fails(self, *_, **__):
    raise ConnectionError("no\nnetwork")


def test_one_that_cannot_start_ends_the_run_and_one_that_fails_later_does_not(monkeypatch, tmp_path, caplog):
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "mine", fake_tracker(start=fails))
    with pytest.raises(UserError, match=r"tracker 'mine' does not start \(ConnectionError: no") as raised:
        Trackers(["mine"], tmp_path, "run", -1).begins([])
    assert "\n" not in str(raised.value)
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "mine", fake_tracker(log=fails, finish=fails))
    with Trackers(["mine", "mine"], tmp_path, "run", -1) as trackers:
        trackers.begins([])
        trackers.evaluated(Evaluation(1, None, {"AUC": 0.5}, 1e-3))
        trackers.tested({"AUC": 0.5})
    assert [record.getMessage() for record in caplog.records] == [
        "tracker mine fails, the run goes on without it: ConnectionError: no"
    ]


def test_without_trackers_their_packages_are_not_imported():
    before = {name for name in sys.modules if name.startswith("tensorboard")}
    with Trackers([], Path(), "run", -1) as trackers:
        trackers.begins([])
        trackers.evaluated(Evaluation(1, 0.5, {"AUC": 0.5}, 1e-3))
        trackers.tested({})
    assert {name for name in sys.modules if name.startswith("tensorboard")} == before
