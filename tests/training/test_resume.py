"""Training that is interrupted anywhere and goes on ends with the weights of one that is not."""

import copy
import logging
import random

import numpy as np
import pytest
import torch
from fuxictr.pytorch.torch_utils import seed_everything

from fuxictr_llm.common.files import read_json, write_json
from fuxictr_llm.distillation import JointTeacher, ShuffledTeacher
from fuxictr_llm.training.checkpoints import MANIFEST, STATE, Checkpoints
from fuxictr_llm.training.loop import fit
from fuxictr_llm.training.step import TrainingStep
from matrix_cells import cell, gain_teacher, problem_of
from support_loop import CELLS_TO_RESUME, Rows, assert_equal_training, make

MADE_FROM = {"learning_rate": 0.01, "data": "abc"}


class Killed(BaseException):
    """In place of SIGKILL: nothing of ours catches it."""


class DyingRows(Rows):
    """Rows that end the process before their n-th batch."""

    def __init__(self, batches, survived):
        super().__init__(batches)
        self.left = survived

    def __iter__(self):
        for batch in super().__iter__():
            if self.left == 0:
                raise Killed
            self.left -= 1
            yield batch


def start(name, method, folder, survived=None, teacher=None, made_from=MADE_FROM, minutes=0, **changes):
    """Train in a folder, from its last checkpoint on; the model."""
    model, rows, params = make(name, method, folder, **changes)
    if teacher is not None:
        trained = gain_teacher(cell(name, "ELEC").case.cls)
        network = copy.deepcopy(trained.model)
        network = teacher(TrainingStep(network, {}) if teacher is JointTeacher else network, trained.add)
        model.enhancement.learn_from(network)
    seed_everything(7)
    rows = rows if survived is None else DyingRows(rows.batches, survived)
    with Checkpoints(folder / "checkpoint", made_from, minutes) as checkpoints:
        fit(model, rows, rows.batches, params, checkpoints)
    return model


def killed(*args, **options):
    with pytest.raises(Killed):
        start(*args, **options)


@pytest.mark.parametrize(("name", "method"), CELLS_TO_RESUME)
def test_killed_at_every_batch_it_ends_as_if_it_were_not(name, method, tmp_path):
    if reason := problem_of(name, method or "AllTaps"):
        pytest.skip(reason)
    whole = start(name, method, tmp_path / "whole", epochs=2)
    for _ in range(2 * len(make(name, method, tmp_path / "unused")[1]) - 1):
        # One batch further each time, and into the next epoch.
        killed(name, method, tmp_path / "parts", survived=1, epochs=2)
    assert_equal_training(start(name, method, tmp_path / "parts", epochs=2), whole)


# SIM adds up the gradients of two batches.
TEACHERS = [("DeepFM", JointTeacher), ("SIM", JointTeacher), ("DIN", ShuffledTeacher)]


@pytest.mark.parametrize(("name", "teacher"), TEACHERS)
def test_a_teacher_goes_on_too(name, teacher, tmp_path):
    changes = {"epochs": 3, "schedule": "joint", "warmup_epochs": 1} if teacher is JointTeacher else {"epochs": 3}
    whole = start(name, "ELEC", tmp_path / "whole", teacher=teacher, **changes)
    for survived in (1, 3, 2):
        killed(name, "ELEC", tmp_path / "parts", survived=survived, teacher=teacher, **changes)
    resumed = start(name, "ELEC", tmp_path / "parts", teacher=teacher, **changes)
    assert_equal_training(resumed, whole)
    states = [model.enhancement.teacher.training_state() for model in (resumed, whole)]
    assert_same(states[0], states[1])


def assert_same(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert [*one] == [*other]
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for left, right in zip(one, other, strict=True):
            assert_same(left, right)
    else:
        assert one == other


def test_what_is_saved_comes_back_as_it_was(tmp_path):
    state = {
        "tied": [torch.arange(4.0)] * 2,
        "betas": (0.9, 0.999),
        "by number": {0: {"step": torch.tensor(3.0)}, 1: {}},
        "infinite": -np.inf,
        "scalar": np.float64(0.5),
        "nothing": None,
        "bytes": torch.get_rng_state(),
        "part of another": torch.arange(6.0).view(2, 3).T[1:],
    }
    with Checkpoints(tmp_path / "checkpoint", MADE_FROM, 0) as checkpoints:
        checkpoints.save(state, 5, tmp_path / "no best weights yet")
        loaded = checkpoints.load(tmp_path / "best.model")
    assert_same(loaded, {**state, "scalar": 0.5, "infinite": -np.inf})


def small(folder, **options):
    return start("FM", None, folder, epochs=2, **options)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A training that was not interrupted."""
    return small(tmp_path_factory.mktemp("whole") / "run")


@pytest.fixture
def folder(tmp_path, caplog):
    """The folder of a training that was killed in its second epoch."""
    caplog.set_level(logging.INFO)
    with pytest.raises(Killed):
        small(tmp_path / "half", survived=4)
    caplog.clear()
    return tmp_path / "half"


DAMAGES = [("cut", STATE), ("changed", STATE), ("missing", STATE), ("changed", "state.json"), ("cut", "best.model")]
DAMAGES += [("missing", "best.model"), ("cut", MANIFEST), ("changed", MANIFEST), ("missing", MANIFEST)]


@pytest.mark.parametrize(("damage", "name"), DAMAGES)
def test_a_damaged_checkpoint_is_not_used(name, damage, whole, folder, caplog):
    (checkpoint,) = (folder / "checkpoint").glob("step-*")
    content = bytearray((checkpoint / name).read_bytes())
    (checkpoint / name).unlink()
    if damage == "cut":
        (checkpoint / name).write_bytes(content[: len(content) // 2])
    elif damage == "changed":
        content[len(content) // 2] ^= 1
        (checkpoint / name).write_bytes(content)
    resumed = small(folder)
    assert_equal_training(resumed, whole)
    assert "goes on from" not in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.02}, "made with another learning_rate"),
        ({"data": "abd"}, "made with another data"),
        ({"code": 1}, "made with another code"),
    ],
)
def test_a_checkpoint_of_something_else_is_not_used_and_says_so(change, message, whole, folder, caplog):
    assert_equal_training(small(folder, made_from={**MADE_FROM, **change}), whole)
    assert message in caplog.text
    assert "training starts anew" in caplog.text


def test_a_checkpoint_of_another_version_is_not_used_and_says_so(folder, caplog):
    (manifest,) = (folder / "checkpoint").glob(f"step-*/{MANIFEST}")
    write_json(manifest, {**read_json(manifest), "version": 0})
    small(folder)
    assert "another version" in caplog.text


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(whole, folder, monkeypatch, caplog):
    (before,) = (folder / "checkpoint").glob("step-*")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("fuxictr_llm.training.checkpoints.save_file", full)
        with pytest.raises(Killed):
            small(folder, survived=1)
    assert "No space left on device" in caplog.text
    assert [*(folder / "checkpoint").glob("step-*")] == [before]
    assert not [*(folder / "checkpoint").glob(".*")]
    assert_equal_training(small(folder), whole)


def test_a_second_process_leaves_the_checkpoints_alone(folder, caplog):
    before = sorted(path.name for path in (folder / "checkpoint").iterdir())
    with Checkpoints(folder / "checkpoint", MADE_FROM, 0):
        small(folder)
    assert "is in use by another process" in caplog.text
    assert sorted(path.name for path in (folder / "checkpoint").iterdir()) == before


def test_without_minutes_there_are_no_checkpoints(tmp_path):
    start("FM", None, tmp_path / "a", minutes=None)
    assert not (tmp_path / "a" / "checkpoint").exists()


def test_a_loader_that_starts_at_an_epoch_alone_goes_on_from_one(tmp_path, caplog):
    """FuxiCTR's Ray loader; the batches of a list have the same order in every epoch."""
    caplog.set_level(logging.INFO)

    def train(folder, survived=None):
        model, rows, params = make("FM", None, folder)
        batches = [*rows.batches, *rows.batches]

        class OnlyWhole(list):
            left = survived

            def __iter__(self):
                for batch in super().__iter__():
                    if OnlyWhole.left == 0:
                        raise Killed
                    OnlyWhole.left = OnlyWhole.left and OnlyWhole.left - 1
                    yield batch

        with Checkpoints(folder / "checkpoint", MADE_FROM, 0) as checkpoints:
            fit(model, OnlyWhole(batches), rows.batches, params, checkpoints)
        return model

    whole = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "half", survived=9)
    assert_equal_training(train(tmp_path / "half"), whole)
    assert "goes on from epoch 2, batch 1 of 6" in caplog.text


def test_random_numbers_go_on(tmp_path):
    with Checkpoints(tmp_path / "checkpoint", MADE_FROM, 0) as checkpoints:
        from fuxictr_llm.training.checkpoints import random_states, restore_random_states

        seed_everything(3)
        checkpoints.save(random_states(torch.device("cpu")), 1, tmp_path / "none")
        drawn = (random.random(), np.random.rand(), torch.rand(1).item(), np.random.normal(), random.gauss(0, 1))
        restore_random_states(checkpoints.load(tmp_path / "none"), torch.device("cpu"))
    again = (random.random(), np.random.rand(), torch.rand(1).item(), np.random.normal(), random.gauss(0, 1))
    assert again == drawn
