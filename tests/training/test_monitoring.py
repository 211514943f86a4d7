"""What is monitored: its direction, metrics that are undefined, and numbers that are NaN."""

import re
from pathlib import Path

import pandas as pd
import pytest

import fuxictr_llm.training.monitoring  # noqa: F401 (mends FuxiCTR's metrics)
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import read_json
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.experiment.run import run_experiment
from support import edit

GROUPED = {"metrics": ["AUC", "gAUC"], "monitor": "gAUC", "group_id": "shop"}


@pytest.fixture
def grouped(configs):
    """Adds a meta column `shop` to the raw files: `groups(split, rows)` gives its values."""

    def add(groups):
        for split in ("train", "valid", "test"):
            table = pd.read_csv(f"raw/{split}.csv")
            table["shop"] = groups(split, table)
            table.to_csv(f"raw/{split}.csv", index=False)
        column = "    - {name: shop, active: true, dtype: str, type: meta}\n"
        edit(configs / "dataset_config.yaml", "    label_col:", f"{column}    label_col:")

    return add


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [
        ("AUC", "max"),
        ("logloss", "min"),
        ("binary_crossentropy", "min"),
        ({"AUC": 1, "logloss": -1}, "max"),
        ({"AUC": 1, "logloss": 0}, "max"),
        ({"logloss": 1}, "min"),
        ({"AUC": -1, "logloss": 0.5}, "min"),
    ],
)
def test_the_mode_follows_the_metric(configs, caplog, monitor, mode):
    params = load_experiment("FM_shop", configs, overrides={"monitor": monitor}).params
    assert params["monitor_mode"] == mode
    assert "monitor" not in caplog.text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"monitor": "logloss", "monitor_mode": "max"}, "monitor_mode 'max' .* worst logloss; .* monitor_mode: min"),
        ({"monitor": "AUC", "monitor_mode": "min"}, "monitor_mode 'min' .* worst AUC; .* monitor_mode: max"),
        ({"monitor": {"AUC": 1, "logloss": 1}}, "monitor .* give the others the opposite sign"),
    ],
)
def test_a_mode_against_the_metric_is_a_warning(configs, caplog, settings, message):
    experiment = load_experiment("FM_shop", configs, overrides=settings)
    assert experiment.params["monitor_mode"] == settings.get("monitor_mode", "max")
    assert re.search(message, caplog.text)


def test_logloss_keeps_the_epoch_with_the_least(configs):
    settings = {"monitor": "logloss", "epochs": 4, "learning_rate": 0.3, "reduce_lr_on_plateau": False}
    record = run_experiment(load_experiment("FM_shop", configs, overrides=settings)).record
    (log,) = Path("checkpoints/shop").glob("*/*.log")
    by_epoch = [float(number) for number in re.findall(r"\[Metrics\] logloss: ([\d.]+)", log.read_text())]
    assert len(by_epoch) >= 2
    assert record["best_epoch"] == 1 + by_epoch.index(min(by_epoch))
    assert record["metrics"]["valid"]["logloss"] == pytest.approx(min(by_epoch), abs=1e-6)


@pytest.mark.parametrize("split", ["valid", "test"])
def test_a_group_metric_without_a_mixed_group_is_refused_before_training(configs, grouped, split):
    grouped(lambda name, table: table["click"] if name == split else "all")  # one class a group
    experiment = load_experiment("FM_shop", configs, overrides=GROUPED)
    message = rf"metric 'gAUC' is undefined on '.*{split}.parquet': no group of 'shop' .* classes of 'click'"
    with pytest.raises(UserError, match=message):
        run_experiment(experiment)
    assert not [*Path("checkpoints").rglob("*.model")]


def test_a_group_metric_with_one_mixed_group_is_measured(configs, grouped, monkeypatch):
    monkeypatch.setattr("multiprocessing.cpu_count", lambda: 1)  # FuxiCTR takes half of the cores
    grouped(lambda name, table: table["color"].where(table["color"] == "red", table["click"]))
    record = run_experiment(load_experiment("FM_shop", configs, overrides=GROUPED)).record
    assert 0 < record["metrics"]["valid"]["gAUC"] < 1
    (file,) = Path("checkpoints/shop").glob("*/*.run.json")
    assert read_json(file)["metrics"] == record["metrics"]


NAN = """
from fuxictr_llm.model_zoo.backbones.FM import FM as Plain


class NanFM(Plain):
    def evaluate_metrics(self, *args, **kwargs):
        return {"AUC": float("nan"), "logloss": 0.5}
"""


def test_a_monitored_metric_that_is_nan_is_never_the_best(configs):
    Path("nan_fm.py").write_text(NAN)
    edit(configs / "model_config.yaml", "DeepFM:", "NanFM: {model: nan_fm.py:NanFM}\nDeepFM:")
    with pytest.raises(UserError, match=r"monitor 'AUC' is nan on the validation data in epoch 1: no epoch"):
        run_experiment(load_experiment("NanFM_shop", configs))
    assert not [*Path("checkpoints").rglob("*.model")]


def test_rankings_do_not_hide_weights_that_are_nan(configs, grouped):
    grouped(lambda name, table: table["color"])
    settings = {"metrics": ["MRR"], "monitor": "MRR", "group_id": "shop", "learning_rate": 1e37}
    with pytest.raises(UserError, match="training diverged"):
        run_experiment(load_experiment("DeepFM_shop", configs, overrides=settings))
