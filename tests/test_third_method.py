"""A method of a stranger's, in one file of less than 60 lines, does all that ours do."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fuxictr_llm import export_run, load_model, registry
from fuxictr_llm.__main__ import main
from fuxictr_llm.common.files import read_json
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.loader import make_loaders
from fuxictr_llm.diagnosis.doctor import CHECKS
from fuxictr_llm.experiment.run import run_experiment

FILE = Path(__file__).parent / "strangers" / "word_overlap.py"
METHOD = f"{FILE}:WordOverlap"


@pytest.fixture(autouse=True, scope="module")
def _registered_for_these_tests_alone():
    yield
    registry._methods.pop("WordOverlap", None)


@pytest.fixture
def config(configs):
    """The config directory of `shop`, which calls the method by a name."""
    (configs / "method_config" / "WordOverlap.yaml").write_text(f"WordOverlap: {{method: '{METHOD}'}}\n")
    return str(configs)


def test_it_is_small():
    assert len(FILE.read_text().splitlines()) < 60


def test_it_is_run_and_served(config):
    result = run_experiment(load_experiment("FM_WordOverlap_shop", config))
    method, words = result.model.enhancement, result.run.params["field_words"]
    assert words["color"] == ["color", "of", "the", "shirt"]
    assert method.overlaps[0].item() == pytest.approx(2 / 6)  # color and city share "of the", and "shop" is in one
    assert method.scale.item() != 1.0 and result.record["parameters"]["method"] == 1
    served = load_model(export_run(f"checkpoints/shop/{result.record['model_id']}", "served"))
    rows = make_loaders(result.run.feature_map, result.run.params, "test")
    with torch.inference_mode():
        predictions = np.concatenate([served.predict(batch) for batch in rows])
    assert np.allclose(predictions, result.model.predict(rows), atol=1e-6)
    plain = run_experiment(load_experiment("FM_shop", config))
    assert plain.record["metrics"] != result.record["metrics"]


def test_a_leaderboard_runs_it_and_its_placebo(config):
    args = ["--backbones", "FM", "--methods", "WordOverlap", "--datasets", "shop", "--controls", "--seeds", "1"]
    assert main(["leaderboard", *args, "--set", "epochs=1", "--config", config, "--out", "board", "--jobs", "2"]) == 0
    records = [read_json(path) for path in Path("board/runs/shop").glob("*/*.json")]
    losses = {record["config"].get("overlap_of"): record["metrics"]["test"]["logloss"] for record in records}
    assert losses.keys() == {None, "neighbours"}
    assert losses[None] != losses["neighbours"]
    assert "WordOverlap neighbours" in Path("board/table.md").read_text()


def test_the_doctor_has_a_row_for_it(monkeypatch, capsys):
    for name in [*CHECKS]:
        monkeypatch.delitem(CHECKS, name)
    assert main(["doctor", "--model", "FM", "--method", METHOD, "--set", "strength=0.5"]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert {"LLaCTR passed works", "WordOverlap passed works"} <= {*lines}


def test_the_zoo_has_a_column_for_it(monkeypatch, capsys):
    monkeypatch.setattr(registry, "backbone_names", lambda: ["FM", "LR"])
    assert main(["zoo", "--method", METHOD, "--jobs", "1", "--to", "table.md"]) == 0
    table = Path("table.md").read_text()
    assert f"| R | {' | '.join(registry.method_names())} |" in table and "WordOverlap" in registry.method_names()
    assert "2 with ELEC, 2 with KAR, 1 with LLMEmb, 2 with LLMFeature, 1 with LLaCTR" in table
    assert "LR with WordOverlap: WordOverlap needs two embedded fields" in table
    row = next(line for line in table.splitlines() if line.startswith("| FM |"))
    assert row.count("| works ") == len(registry.method_names()) - 1 and "| in part |" in row  # CTRL, of embeddings
