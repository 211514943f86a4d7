"""Data sets with several labels, from the config to the served model."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fuxictr_llm import export_run, load_model
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import read_json
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.loader import make_loaders
from fuxictr_llm.experiment.preparation import prepare_run
from fuxictr_llm.experiment.run import run_experiment
from support import edit

MMOE = "{num_experts: 2, expert_hidden_units: [8], gate_hidden_units: [], tower_hidden_units: [4]}"
BOTH = ["click", "buy"]


@pytest.fixture
def two_labels(configs, tmp_path):
    """The data set `shop` with a second label, and small multi-task models."""
    for split in ("train", "valid", "test"):
        path = tmp_path / "raw" / f"{split}.csv"
        table = pd.read_csv(path)
        table["buy"] = table["click"] * (table["color"] == "red")
        table.to_csv(path, index=False)
    edit(
        configs / "dataset_config.yaml",
        "label_col: {name: click, dtype: float}",
        "label_col: [{name: click, dtype: float}, {name: buy, dtype: float}]",
    )
    with (configs / "model_config.yaml").open("a") as file:
        file.write(f"MMoE: {MMOE}\n")
    return configs


def load(configs, expid, **changes):
    overrides = {"slice_by": "color", "epochs": 4, "learning_rate": 0.03, **changes}
    return load_experiment(expid, configs, overrides=overrides)


def run(configs, expid="MMoE_shop", **changes):
    return run_experiment(load(configs, expid, **changes))


def check_served(result, expected, labels):
    served = load_model(export_run(f"checkpoints/shop/{result.record['model_id']}", "served"))
    batches = list(make_loaders(result.run.feature_map, result.run.params, "test"))
    found = np.concatenate([served.predict(batch) for batch in batches])
    assert served.labels == tuple(labels) and found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-6
    nothing = {name: column[:0] for name, column in batches[0].items()}
    assert served.predict(nothing).shape == (0, *found.shape[1:])


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_tasks": 2, "task": ["binary_classification"] * 2, "loss": ["binary_crossentropy"] * 2}],
)
def test_a_run_learns_measures_and_serves_both_tasks(two_labels, changes):
    result = run(two_labels, **changes)
    record = read_json(Path(result.model.checkpoint).with_suffix(".run.json"))
    test, slices = record["metrics"]["test"], record["slices"]["slices"]
    assert record["labels"] == BOTH and record["best_epoch"] >= 1
    for metric in ("AUC", "logloss"):
        assert test[metric] == pytest.approx(np.mean([test[f"{label}_{metric}"] for label in BOTH]))
    assert test["buy_AUC"] > 0.9 and test["click_AUC"] < 0.9  # who buys is seen at once, who clicks is not
    rows = make_loaders(result.run.feature_map, result.run.params, "test")
    predicted = result.model.predict(rows)
    check_served(result, np.stack([predicted[label] for label in BOTH], axis=1), BOTH)
    for facts in slices.values():
        values = [facts[f"{label}_logloss"] for label in BOTH]
        assert facts["logloss"] == (None if None in values else pytest.approx(np.mean(values)))
    whole = sum(facts["rows"] * (facts["buy_logloss"] or 0) for facts in slices.values()) / rows.num_samples
    assert whole == pytest.approx(test["buy_logloss"])
    line = Path("my_configs.csv").read_text()
    assert f"[test] click_AUC: {test['click_AUC']:.6f} - click_logloss: " in line and "buy_AUC" in line
    log = Path(result.model.checkpoint).with_suffix(".log").read_text()
    assert f"  test        AUC: {test['AUC']:.6f} - logloss: {test['logloss']:.6f}\n" in log
    assert f"    buy    AUC: {test['buy_AUC']:.6f} - logloss: {test['buy_logloss']:.6f}\n" in log


@pytest.mark.parametrize("method", ["LLaCTR", "ELEC"])
def test_both_tasks_are_served_as_a_method_left_them(two_labels, tiny_settings, llm, method):
    settings = {"epochs": 1, **(tiny_settings if method == "LLaCTR" else {**llm, "h_hidden": 8, "h_dim": 4})}
    if method == "ELEC":  # whose text head has one task and is another network
        prepare_run(load(two_labels, "DeepFM_ELEC_shop", **settings), "unused")
    result = run(two_labels, f"MMoE_{method}_shop", **settings)
    predicted = result.model.predict(make_loaders(result.run.feature_map, result.run.params, "test"))
    check_served(result, np.stack([predicted[label] for label in BOTH], axis=1), BOTH)
    for network in result.record["networks"].values():
        assert {f"{label}_AUC" for label in BOTH} <= network["metrics"]["test"].keys()


def test_a_model_with_one_task_learns_the_first_label_and_says_so(two_labels):
    result = run(two_labels, "DeepFM_shop")
    log = Path(result.model.checkpoint).with_suffix(".log").read_text()
    assert "DeepFM has one task and learns label 'click', not 'buy'; MMoE, PLE and ShareBottom learn all" in log
    assert result.record["labels"] == ["click"] and list(result.record["metrics"]["test"]) == ["AUC", "logloss"]
    rows = make_loaders(result.run.feature_map, result.run.params, "test")
    check_served(result, result.model.predict(rows), ["click"])


def test_a_model_of_several_tasks_takes_a_data_set_with_one_label(configs):
    with (configs / "model_config.yaml").open("a") as file:
        file.write(f"MMoE: {MMOE}\n")
    result = run(configs)
    test = result.record["metrics"]["test"]
    assert test["AUC"] == test["click_AUC"] > 0.6 and "buy_AUC" not in test
    rows = make_loaders(result.run.feature_map, result.run.params, "test")
    check_served(result, np.array(result.model.predict(rows)["click"]), ["click"])


@pytest.mark.parametrize(
    "expid, changes, problem",
    [
        (
            "MMoE_shop",
            {"num_tasks": 3},
            r"num_tasks 3: a task is a label, and the data set has 2 \(click, buy\); leave",
        ),
        (
            "MMoE_shop",
            {"task": ["binary_classification"]},
            "task is a list for 1 labels, the data set has 2 .click, buy",
        ),
        (
            "MMoE_shop",
            {"loss": ["binary_crossentropy"] * 3},
            "loss is a list for 3 labels, .*give one for each, or one",
        ),
        (
            "MMoE_shop",
            {"task": ["ranking", "ranking"]},
            r"'task' is \['ranking', 'ranking'\] .*'binary_classification'",
        ),
        ("MMoE_shop", {"task": []}, "'task'.*should have at least 1 item"),
        ("MMoE_shop", {"loss_weight": "GradNorm"}, "loss_weight 'GradNorm': MMoE has EQ"),
        ("DeepFM_shop", {"loss": ["binary_crossentropy"] * 2}, r"loss is a list .*, and DeepFM has one task; give one"),
        ("DeepFM_shop", {"num_tasks": 2}, "unknown config key 'num_tasks'"),
    ],
)
def test_settings_that_do_not_fit_the_labels_are_named(two_labels, expid, changes, problem):
    with pytest.raises(UserError, match=problem):
        run(two_labels, expid, **changes)
    assert not list(Path("checkpoints").glob("**/*.model"))
