"""An error after training costs no weights, and touches no file of a finished run."""

import json
from pathlib import Path

import pytest
import torch

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.experiment import record as kept_weights
from fuxictr_llm.experiment import run as experiment_module
from fuxictr_llm.experiment.run import run_experiment

OWN = Path("checkpoints/shop/DeepFM_shop")


def run(configs, **changes):
    return run_experiment(load_experiment("DeepFM_shop", configs, **changes))


def files():
    paths = [path for path in OWN.parent.glob("*/*") if path.suffix not in (".log", ".checkpoint")]
    return {path.name: path.read_bytes() for path in paths}


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.fixture
def trained(configs):
    """The files of a finished run, and the name under which weights of its settings are kept."""
    result = run(configs)
    assert torch.load(result.model.checkpoint, weights_only=True)
    return files(), f"{load_experiment('DeepFM_shop', configs).full_id}.unfinished.model"


@pytest.mark.parametrize(
    ("module", "name"),
    [(experiment_module, "count_parameters"), (experiment_module, "versions"), (kept_weights, "write_json")],
)
@pytest.mark.parametrize("error", [UserError("a value is NaN"), ValueError("Input contains NaN."), OSError(28, "full")])
def test_weights_are_kept_and_named_where_the_rest_fails(configs, trained, monkeypatch, caplog, module, name, error):
    before, kept = trained
    monkeypatch.setattr(module, name, failing(error))
    with pytest.raises((UserError, type(error))) as raised:
        run(configs)
    left = files()
    assert left.pop(kept) == before["DeepFM_shop.model"] and left == before
    log = (OWN / "DeepFM_shop.log").read_text()
    where = f"the weights, trained to the end, are kept in 'checkpoints/shop/DeepFM_shop/{kept}'"
    assert where in (str(raised.value) if isinstance(raised.value, UserError) else log)


def test_weights_of_a_first_run_are_kept_and_go_when_it_ends_well(configs, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(experiment_module, "peak_memory", failing(ValueError("broken")))
        with pytest.raises(ValueError, match="broken"):
            run(configs, overrides={"seed": 3})
    (kept,) = files()
    assert kept.endswith(".unfinished.model")
    result = run(configs, overrides={"seed": 3})
    assert set(files()) == {f"{result.record['model_id']}.{kind}" for kind in ("model", "run.json")}


def test_an_error_in_training_keeps_nothing(configs, monkeypatch):
    monkeypatch.setattr(experiment_module, "fit", failing(ValueError("broken")))
    with pytest.raises(ValueError, match="broken"):
        run(configs)
    assert not files()


def test_a_record_that_cannot_be_written_leaves_the_older_pair(configs, trained, monkeypatch):
    before, _ = trained
    monkeypatch.setattr(experiment_module, "versions", lambda: {"torch": object()})
    with pytest.raises(TypeError):
        run(configs)
    assert {name: files()[name] for name in before} == before
    assert json.loads(before["DeepFM_shop.run.json"])["seed"] == 7


def test_a_model_with_a_linear_part_takes_columns_of_vectors(tmp_path, configs):
    import numpy as np
    import pandas as pd

    text = (configs / "dataset_config.yaml").read_text()
    vector = "    - {name: v, active: true, dtype: float, type: embedding, pretrain_dim: 3}\n"
    text = text.replace("    label_col", vector + "    label_col").replace(".csv", ".parquet")
    text = text.replace("data_format: csv", "data_format: parquet\n    rebuild_dataset: true")
    (configs / "dataset_config.yaml").write_text(text)
    for split in ("train", "valid", "test"):
        rows = pd.read_csv(tmp_path / "raw" / f"{split}.csv", dtype={"user": str})
        rows["tags"] = rows["tags"].str.split("^")
        rows["v"] = list(np.random.default_rng(0).normal(size=(len(rows), 3)).astype("float32"))
        rows.to_parquet(tmp_path / "raw" / f"{split}.parquet")
    for name in ("DeepFM", "DNN"):
        result = run_experiment(load_experiment(f"{name}_shop", configs))
        assert 0 < result.record["metrics"]["test"]["AUC"] < 1
