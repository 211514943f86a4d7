"""Training and evaluation show their progress on standard error, and leave the log as FuxiCTR's."""

import re

import pytest

from fuxictr_llm.common import progress
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.experiment.run import run_experiment


@pytest.mark.parametrize("verbose", [1, 0])
def test_every_stage_of_a_run_shows_progress(configs, monkeypatch, capsys, tmp_path, verbose):
    monkeypatch.setattr(progress, "DELAY", 0)
    monkeypatch.setattr(progress, "INTERVALS", (0, 0))
    run_experiment(load_experiment("DeepFM_shop", configs, overrides={"verbose": verbose, "slice_by": "city"}))
    printed = capsys.readouterr()
    shown = [line for line in printed.err.splitlines() if "rows/s" in line]
    assert "rows/s" not in printed.out and "it/s" not in printed.out + printed.err and "\r" not in printed.err
    assert "rows/s" not in next((tmp_path / "checkpoints").rglob("*.log")).read_text()
    if not verbose:
        assert shown == []
        return
    finished = [line for line in shown if re.search(r"100% (\d+)/\1 ", line)]
    names = [line.split(":")[0] for line in finished]
    first = names.index("validation")
    assert names[0] == "checking train.csv"  # all stages of building: tests/data/test_watched.py
    finished, names = finished[first:], names[first:]
    assert names == [
        *("validation", "epoch 1 of 2", "validation", "epoch 2 of 2"),
        *("validation", "test", "metrics by item frequency"),
    ]
    assert "900/900" in finished[3] and "best AUC 0." in finished[3]
