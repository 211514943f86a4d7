"""The metrics of groups of rows, as `predict` computes them, are the run's own; those of rows are in test_predict.py."""

from pathlib import Path

import polars as pl
import pytest

from fuxictr_llm.serving.predict import predict_file, served_model
from support_serving import run_of

OF_GROUPS = ["gAUC", "avgAUC", "MRR", "NDCG(k=2)"]


@pytest.mark.parametrize("kind", ["categorical", "meta"])
def test_metrics_of_groups_are_the_runs_own(configs, kind):
    """Half of the users are too rare for an id of their own: as a column of the model, they are one group."""
    words = [{"name": ["color", "city"], "active": True, "dtype": "str", "type": "categorical"}]
    columns = [*words, {"name": "user", "active": True, "dtype": "str", "type": kind}]
    metrics = ["AUC", *OF_GROUPS, "logloss", "binary_crossentropy"]
    changes = {"metrics": metrics, "group_id": "user", "feature_cols": columns, "min_categr_count": 30}
    result, run = run_of("FM_shop", configs, **changes)
    with served_model(run) as served:
        predicted = predict_file(served, Path("raw/test.csv"))
        assert predicted.metrics == result.record["metrics"]["test"] and list(predicted.metrics) == metrics
        if kind == "meta":
            pl.read_csv("raw/test.csv").drop("user").write_csv("fewer.csv")
            predicted = predict_file(served, Path("fewer.csv"))
            assert predicted.left_out == OF_GROUPS and list(predicted.metrics) == [
                "AUC",
                "logloss",
                "binary_crossentropy",
            ]


def test_metrics_of_groups_of_several_labels_are_the_runs_own():
    result, run = run_of("MMoE_movielens100k_mtl", metrics=["MRR", "gAUC", "AUC"], group_id="gender")
    with served_model(run) as served:
        assert (
            predict_file(served, Path(result.record["config"]["test_data"])).metrics == result.record["metrics"]["test"]
        )
