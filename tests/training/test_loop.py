"""The loop of training: equal to FuxiCTR's `fit`, and equal to itself whenever it is interrupted."""

import logging
import re

import pytest
import torch

from fuxictr_llm.registry import own_backbone_names
from fuxictr_llm.training.loop import fit
from matrix_cells import problem_of
from support_loop import assert_equal_training, make

# As in test_matrix.py: one backbone for each path that a method's code can take, and one with tuples as batches.
PATHS = ("DeepFM", "FM", "FinalMLP", "DIN", "MMoE", "SIM")
METHODS = ("LLaCTR", "LLMEmb", "ELEC")
CELLS = [(name, None) for name in own_backbone_names()] + [("SIM", None)]
CELLS += [(name, method) for name in PATHS for method in METHODS]
# What FuxiCTR's `fit` reads of a config: each is tried on one backbone.
VARIANTS = [
    {"eval_steps": 2},
    {"eval_steps": 5},
    {"save_best_only": False},
    {"monitor": {"AUC": 1, "logloss": -1}},
    {"monitor": "logloss", "monitor_mode": "min"},
    {"early_stop_patience": 1, "learning_rate": 0.5},
    {"reduce_lr_on_plateau": False},
    {"optimizer": "SGD"},
    {"max_gradient_norm": 0.01},
]


def log_of(caplog):
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.INFO]
    return [re.sub(r"/\S*", "PATH", line) for line in lines]


def assert_equals_fuxictrs_fit(name, method, tmp_path, caplog, **changes):
    theirs, rows, params = make(name, method, tmp_path / "theirs", **changes)
    caplog.set_level(logging.INFO)
    caplog.clear()
    theirs.fit(rows, validation_data=rows.batches, **params)
    expected = log_of(caplog)
    ours, rows, params = make(name, method, tmp_path / "ours", **changes)
    caplog.clear()
    fit(ours, rows, rows.batches, params)
    assert log_of(caplog) == expected
    assert_equal_training(ours, theirs)


@pytest.mark.parametrize(("name", "method"), CELLS)
def test_it_is_fuxictrs_fit(name, method, tmp_path, caplog):
    if reason := problem_of(name, method or "AllTaps"):
        pytest.skip(reason)
    assert_equals_fuxictrs_fit(name, method, tmp_path, caplog, epochs=2)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_it_is_fuxictrs_fit_with_these_settings(changes, tmp_path, caplog):
    assert_equals_fuxictrs_fit("DeepFM", "LLaCTR", tmp_path, caplog, **changes)


@pytest.mark.parametrize("counts", [True, False])
def test_a_start_that_counts_stays_where_no_epoch_is_better(counts, tmp_path):
    model, rows, params = make("DeepFM", "LLaCTR", tmp_path)
    fit(model, rows, rows.batches, params)
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        metrics = model.evaluate(rows.batches)
    for group in model.optimizer.param_groups:
        group["lr"] = 10.0  # nothing is learnt any more
    done = fit(model, rows, rows.batches, params, start_counts=counts)
    is_start = all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())
    assert (done.best_epoch == 0) == is_start == counts
    if counts:
        assert model.evaluate(rows.batches) == metrics
