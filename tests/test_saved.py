"""What an earlier version left on the disk (tests/saved/README.md) is read by this one, and means the same."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fuxictr_llm import export_run, load_model
from fuxictr_llm.__main__ import main
from fuxictr_llm.common.files import read_json
from fuxictr_llm.leaderboard.boards.bars import write_row
from fuxictr_llm.leaderboard.run.results import Results
from fuxictr_llm.serving.export import load_network

SAVED = Path(__file__).parent / "saved"
RUN = "runs/shop/DeepFM_LLaCTR_shop_b793e065"


@pytest.fixture(autouse=True)
def saved():
    """A copy of the saved files in the test's folder."""
    shutil.copytree(SAVED, ".", dirs_exist_ok=True)
    Path("configs/method_config").mkdir()


def test_an_export_predicts_as_it_did():
    expected = read_json("predictions.json")
    batch = {name: np.array(column) for name, column in expected["batch"].items()}
    assert load_model("exported").predict(batch).reshape(-1) == pytest.approx(expected["y"], abs=1e-6)


def test_a_run_is_exported_and_taken_as_a_teacher():
    expected = read_json("predictions.json")
    batch = {name: np.array(column) for name, column in expected["batch"].items()}
    served = load_model(export_run(RUN, "again"))
    assert served.predict(batch).reshape(-1) == pytest.approx(expected["y"], abs=1e-6)
    _, described = load_network(RUN)
    assert described["model"] == "DeepFM"


def test_a_run_record_becomes_a_row_of_bars():
    readme = (write_row([f"{RUN}.run.json"], Path("bars")) / "README.md").read_text()
    assert "0.460107" in readme and "DeepFM_LLaCTR" in readme


def test_a_leaderboards_runs_are_those_of_other_code_and_come_out_the_same():
    results = Results(Path("board"))
    assert len(results.plan.runs()) == len(results.to_do()) == 4 and not results.ignored
    before, plan = pd.read_csv("board/table.csv"), Path("board/plan.yaml")
    # FuxiCTR's own kernels and a map without bounds, which were the defaults then.
    text = plan.read_text().replace("set: {", "set: {optimizer_impl: fuxictr, ")
    plan.write_text(text.replace("method: LLaCTR", "method: LLaCTR, settings: {fie_map: full}"))
    assert main(["leaderboard", "--from", "board/plan.yaml", "--out", "board", "--jobs", "1"]) == 0
    after = pd.read_csv("board/table.csv")
    same = ["test_AUC_mean", "test_logloss_mean", "valid_AUC_mean", "parameters_backbone", "parameters_method"]
    is_plain = before["arm"] == "plain"
    assert after[same][is_plain].to_numpy() == pytest.approx(before[same][is_plain].to_numpy(), abs=1e-6)
    # FRE adds up in another order since, and a few pairs of rows are ranked otherwise.
    assert after[same].to_numpy() == pytest.approx(before[same].to_numpy(), abs=1e-3)
