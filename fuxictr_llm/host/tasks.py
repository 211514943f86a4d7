"""The tasks of a model: its labels and predictions, and the metric that decides when training stops early.

One of FuxiCTR's MultiTaskModels learns all T labels of a data set, any other model the first one.
Shape symbols: `B` rows, `T` tasks.
"""

import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel, MultiTaskModel
from torch import Tensor

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.host.batches import Batch


def labels_of(cls: Any, feature_map: FeatureMap) -> list[str]:
    """The T labels that a model of the class learns."""
    return list(feature_map.labels) if _is_multi_task(cls) else list(feature_map.labels[:1])


def task_settings(cls: Any, feature_map: FeatureMap, params: Mapping[str, Any]) -> dict[str, int]:
    """The constructor's settings that follow from the data set: `num_tasks` of a multi-task model.

    Raises:
        UserError: `num_tasks`, or a list as `task` or `loss`, does not fit the labels of the data set or the model.
    """
    cls = _backbone_of(cls)
    labels, name = feature_map.labels, getattr(cls, "__name__", repr(cls))
    lists = {key: params[key] for key in ("task", "loss") if isinstance(params.get(key), list)}
    if not _is_multi_task(cls):
        for key, values in lists.items():
            raise UserError(f"{key} is a list ({values}), and {name} has one task; give one value")
        return {}
    have = f"the data set has {len(labels)} ({', '.join(labels)})"
    for key, values in lists.items():
        if len(values) != len(labels):
            raise UserError(f"{key} is a list for {len(values)} labels, {have}; give one for each, or one for all")
    if params.get("num_tasks") not in (None, len(labels)):
        raise UserError(f"num_tasks {params['num_tasks']}: a task is a label, and {have}; leave num_tasks out")
    if cls.add_loss is MultiTaskModel.add_loss and params.get("loss_weight", "EQ") != "EQ":
        raise UserError(f"loss_weight {params['loss_weight']!r}: {name} has EQ, the sum of the tasks' losses, alone")
    return {"num_tasks": len(labels)}


def predictions_of(model: BaseModel, return_dict: Mapping[str, Tensor]) -> Tensor:
    """`[B, T]`: the probabilities in the output of a model's forward pass, in the order of its labels."""
    names = ["y_pred"] if "y_pred" in return_dict else [f"{label}_pred" for label in model.feature_map.labels]
    return torch.cat([return_dict[name].reshape(-1, 1) for name in names], dim=1)


def truth_of(model: BaseModel, batch: Batch) -> Tensor:
    """`[B, T]`: the labels in a batch that the model learns."""
    labels = model.get_labels(batch)
    return torch.cat(labels, dim=1) if isinstance(labels, list) else labels


def _is_multi_task(cls: Any) -> bool:
    cls = _backbone_of(cls)
    return isinstance(cls, type) and issubclass(cls, MultiTaskModel)


def _backbone_of(cls: Any) -> Any:
    """The backbone's class of a class with a method, or of another builder with `backbone_cls`."""
    return getattr(cls, "backbone_cls", cls)


Mode = Literal["max", "min"]
LOWER_IS_BETTER = ("logloss", "binary_crossentropy")


def monitored(params: Mapping[str, Any]) -> dict[str, float]:
    """Metric -> its weight in the sum that FuxiCTR monitors; a single metric has weight 1."""
    monitor = params.get("monitor") or "AUC"
    return {monitor: 1.0} if isinstance(monitor, str) else dict(monitor)


def mode_of(params: Mapping[str, Any]) -> Mode | None:
    """The mode that fits the metrics and the signs of their weights; None where they contradict each other."""
    signs = {(weight > 0) != (name in LOWER_IS_BETTER) for name, weight in monitored(params).items() if weight}
    return None if len(signs) != 1 else "max" if signs.pop() else "min"


def chosen_mode(params: Mapping[str, Any]) -> Mode:
    """The mode of the settings or, without one, what fits the metrics; FuxiCTR would take `max` for every metric."""
    return params.get("monitor_mode") or mode_of(params) or "max"


def warn_of_mode(params: Mapping[str, Any], where: str) -> None:
    """Warn where training would keep the epoch that is worst by what is monitored."""
    fits, given, monitor = mode_of(params), params.get("monitor_mode"), params.get("monitor") or "AUC"
    if fits is None:
        logging.warning(
            "monitor %r of %s adds metrics of which more is better to others of which less is; give the others the "
            "opposite sign",
            monitor,
            where,
        )
    elif given is not None and given != fits:
        logging.warning(
            "monitor_mode %r of %s keeps the epoch with the worst %s; leave it out, or set monitor_mode: %s",
            given,
            where,
            monitor,
            fits,
        )
