"""FuxiCTR's own tuner on our configs: `enumerate_params` and `grid_search`, method keys included."""

from pathlib import Path

import pytest
import yaml
from fuxictr import autotuner

from fuxictr_llm.__main__ import main
from fuxictr_llm.config.resolve import load_experiment

# Base settings that need no language model, and what is tuned: keys of the backbone, of the method, of the data set.
BASES = {
    "DeepFM_shop": ({}, {"learning_rate": [0.01, 0.02], "hidden_units": [[8], [4]]}),
    "DeepFM_LLaCTR_shop": (
        {"ssft_epochs": 0, "field_vectors": "identity"},
        {"lambda_fre": [0.0, 0.2], "fie_map": ["full", "diagonal"], "min_categr_count": 2},
    ),
    "DeepFM_ELEC_shop": ({"teacher": "self"}, {"alpha": [0.5], "inject": ["top", "logit"], "batch_size": 64}),
}


class Done:
    """In the place of a process: runs the command here. Its second word is the script."""

    def __init__(self, command: list[str]):
        assert command[:3] == ["python", "-u", "run_expid.py"]
        self.code = main(["run", *command[3:]])

    def poll(self) -> int:
        return self.code

    wait = poll


@pytest.mark.parametrize("expid", BASES)
def test_the_tuner_takes_a_written_directory_and_its_runs_give_results(expid, configs, monkeypatch):
    fixed, space = BASES[expid]
    load_experiment(expid, configs, overrides={**fixed, "epochs": 1}).write_directory(Path("base"))
    tuner = {"base_config": "base", "base_expid": expid, "dataset_id": "shop", "tuner_space": space}
    Path("tuner.yaml").write_text(yaml.safe_dump(tuner))
    folder = autotuner.enumerate_params("tuner.yaml")
    expids = autotuner.load_experiment_ids(folder)
    found = [load_experiment(expid, folder).params for expid in expids]
    lists = [value if isinstance(value, list) else [value] for value in space.values()]
    tried = {str([params[key] for key in space]) for params in found}
    assert len(expids) == len(tried) == len(lists[0]) * len(lists[1]) and str([of[0] for of in lists]) in tried
    expected = {**fixed, "method": expid.split("_")[1] if expid.count("_") == 2 else None}
    assert all({key: params[key] for key in expected} == expected for params in found)
    assert all(params["dataset_id"].startswith("shop_") for params in found)
    monkeypatch.setattr(autotuner.subprocess, "Popen", Done)
    autotuner.grid_search(folder, [-1], expid_tag=expids[-1])
    (line,) = Path("tuner.csv").read_text().splitlines()
    assert f"[exp_id] {expids[-1]}," in line and "[test] AUC: 0." in line
