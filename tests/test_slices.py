"""Test metrics by item frequency: slices by hand, FuxiCTR's own metrics, every form of data, bad columns."""

from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import log_loss, roc_auc_score

from fuxictr_llm.config import load_experiment
from fuxictr_llm.data.loader import make_loaders
from fuxictr_llm.errors import UserError
from fuxictr_llm.experiment import build_model, prepare_run
from fuxictr_llm.slices import SLICES, FrequencySlices, item_column, predict, slices_table
from support import edit, small_feature_map, vocabulary


def slices_of(**counts):
    """Slices of the items 1, 2, ... with so many train rows; what they say of one row of each, and of an unseen one."""
    counts = np.array(list(counts.values()))
    slices = FrequencySlices("item", np.arange(1, len(counts) + 1), counts)
    return slices, slices.of_predictions(
        np.arange(len(counts) + 1), np.zeros(len(counts) + 1), np.full(len(counts) + 1, 0.5)
    )


@pytest.mark.parametrize(
    ("counts", "rare", "middle", "head"),
    [
        ([1, 2, 3, 4, 10], [1, 2], [3, 4], [10]),  # a tenth of 20 is reached with the second, half with the last
        ([10, 1, 4, 2, 3], [1, 2], [3, 4], [10]),
        ([1, 1, 1, 1, 6, 6, 6, 6], [1, 1, 1, 1], [], [6, 6, 6, 6]),  # items of equal count stay together
        ([5, 5, 5], [], [], [5, 5, 5]),
        ([3, 27], [3], [], [27]),  # exactly a tenth
        ([7], [], [], [7]),
        ([], [], [], []),
    ],
)  # fmt: skip
def test_bounds_are_shares_of_the_train_rows(counts, rare, middle, head):
    _, found = slices_of(**{f"item{index}": count for index, count in enumerate(counts)})
    for name, expected in {"rare": rare, "middle": middle, "head": head}.items():
        facts = found["slices"][name]
        assert (facts["rows"], facts["items"]) == (len(expected), len(expected)), name
        assert facts["train_rows"] == ([min(expected), max(expected)] if expected else None)
    assert found["by"] == "item" and found["slices"]["unseen"]["train_rows"] == [0, 0]
    assert found["slices"]["unseen"]["rows"] == 1
