"""The predictions that a run keeps are those that its metrics were measured on, and keeping them is no other run."""

from pathlib import Path

import pytest
from sklearn.metrics import roc_auc_score

from fuxictr_llm.common.files import digest_of_file
from fuxictr_llm.common.run_files import run_files
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.experiment.predictions import PREDICTIONS, read_predictions
from fuxictr_llm.experiment.run import run_experiment


def test_predictions_of_the_test_rows_lie_beside_the_record(configs):
    kept, not_kept = (
        load_experiment("FM_shop", configs, overrides={"keep_predictions": keep}) for keep in (True, False)
    )
    assert kept.sha256 == not_kept.sha256
    record = run_experiment(kept).record
    path = Path(f"{run_files(Path('checkpoints/shop'), record['model_id'])}{PREDICTIONS}")
    y_true, y_pred = read_predictions(path)
    assert y_true.shape == y_pred.shape == (150,) and record["predictions_sha256"] == digest_of_file(path)
    assert roc_auc_score(y_true, y_pred) == pytest.approx(record["metrics"]["test"]["AUC"], abs=1e-6)
    path.unlink()
    assert "predictions_sha256" not in run_experiment(not_kept).record and not path.exists()
    no_test = load_experiment("FM_shop", configs, overrides={"keep_predictions": True, "test_data": None})
    assert "predictions_sha256" not in run_experiment(no_test).record
