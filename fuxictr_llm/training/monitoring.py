"""Checks of what decides which epoch is the best: group metrics before training, what was measured during it."""

import math
import multiprocessing
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import fuxictr.metrics
import numpy as np
import torch
from fuxictr.pytorch.models import BaseModel

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.progress import Watched
from fuxictr_llm.data.in_memory import read_slices
from fuxictr_llm.host.batches import monitored, rows_of

# Averages over the groups with both classes: undefined without such a group.
NEED_BOTH_CLASSES = ("gAUC", "avgAUC")
# Metrics that are finite even where all predictions are NaN.
RANKINGS = ("MRR", "NDCG")
SLICE_ROWS = 100_000

# FuxiCTR divides the work of group metrics among half of the cores, and half of one core is none.
fuxictr.metrics.mp = SimpleNamespace(Pool=multiprocessing.Pool, cpu_count=lambda: max(2, multiprocessing.cpu_count()))


def check_groups(labels: Sequence[str], params: Mapping[str, Any]) -> None:
    """Check that the group metrics are defined: valid and test each have a group with both classes.

    Args:
        labels: those that the model learns.
        params: the settings, with the built files as the splits.

    Raises:
        UserError: a metric is undefined on a split.
    """
    metrics = {*params["metrics"], *monitored(params)}
    undefined = [metric for metric in NEED_BOTH_CLASSES if metric in metrics]
    if not undefined or params.get("user_info"):  # LongCTR's rows have their columns in other files
        return
    for split in ("valid", "test"):
        path = params.get(f"{split}_data")
        if path is None:
            continue
        for label in labels:
            if not _has_mixed_group(path, label, params["group_id"]):
                raise UserError(
                    f"metric {undefined[0]!r} is undefined on {path!r}: no group of {params['group_id']!r} has rows of "
                    f"both classes of {label!r}; name another group_id, or leave {undefined[0]} out of metrics and "
                    "monitor"
                )


def _has_mixed_group(path: str, label: str, group: str) -> bool:
    groups_of_class: list[set[int]] = [set(), set()]
    for part in read_slices(path, [label, group], SLICE_ROWS):
        for value, groups in enumerate(groups_of_class):
            groups.update(np.unique(part[group][part[label] == value]).tolist())
        if not groups_of_class[0].isdisjoint(groups_of_class[1]):
            return True
    return False


def check_evaluation(model: BaseModel, metrics: Mapping[str, float], params: Mapping[str, Any]) -> None:
    """Check the metrics of an evaluation during training, before FuxiCTR compares them with the best so far.

    Raises:
        UserError: the monitored metric is not finite, or it is finite although weights are NaN.
    """
    names = monitored(params)
    value = model._monitor.get_value(metrics)
    if not math.isfinite(value):
        raise UserError(
            f"monitor {params.get('monitor')!r} is {value} on the validation data in epoch {model._epoch_index + 1}: "
            "no epoch can be called the best; monitor a metric that is defined there, or lower learning_rate (now "
            f"{params['learning_rate']})"
        )
    rankings_alone = all(name.startswith(RANKINGS) for name in names)
    if rankings_alone and not all(torch.isfinite(weight).all() for weight in model.parameters()):
        raise UserError(f"training diverged: weights are NaN; lower learning_rate (now {params['learning_rate']})")


def evaluate(model: BaseModel, rows: Any, name: str) -> dict[str, float]:
    """The metrics of FuxiCTR's `evaluate`, with our progress in place of FuxiCTR's.

    Args:
        rows: a loader of FuxiCTR's form.
        name: of the rows, as it is shown.
    """
    verbose, model._verbose = model._verbose, 0
    try:
        return model.evaluate(Watched(rows, name, verbose > 0, rows_of))
    finally:
        model._verbose = verbose
