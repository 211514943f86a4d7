"""What goes into a model and what comes out: batches of both forms, tasks with their labels, predictions.

A batch is FuxiCTR's dict of columns, or the tuple that its LongCTR models take. One of FuxiCTR's MultiTaskModels
learns all T labels of a data set, any other model the first one.
Shape symbols: `B` rows, `L` length of a sequence of items, `T` tasks.
"""

import logging
from collections.abc import Container, Mapping
from typing import Any, Literal, TypeAlias

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel, MultiTaskModel
from torch import Tensor

from fuxictr_llm.common.errors import UserError

AFFECTS_VECTORS = False  # see common/code_digest.py

Columns: TypeAlias = Mapping[str, Tensor]
# The columns of the rows; the columns of the items [B * (L + 1)]: each row's L items of its history, then its target;
# and the mask [B, L] of the places in the history that hold an item.
LongBatch: TypeAlias = tuple[Columns, Columns, Tensor]
Batch: TypeAlias = dict[str, Tensor] | LongBatch
Mode = Literal["max", "min"]
LOWER_IS_BETTER = ("logloss", "binary_crossentropy")


def columns_of(batch: Columns | LongBatch) -> dict[str, Tensor]:
    """Column -> tensor with `B` rows; of a LongBatch, the columns of the rows and of their target items."""
    if isinstance(batch, Mapping):
        return dict(batch)
    rows, items, mask = batch
    length = mask.shape[1]
    return {**rows, **{name: column[length :: length + 1] for name, column in items.items()}}


def with_columns(batch: Columns | LongBatch, added: Columns) -> Batch:
    """A batch of the same form with more columns, `B` rows each."""
    if isinstance(batch, Mapping):
        return {**batch, **added}
    rows, items, mask = batch
    return {**rows, **added}, items, mask


def only_columns(batch: Columns | LongBatch, names: Container[str]) -> Batch:
    """A batch of the same form, in new dicts, with the named columns alone."""
    if isinstance(batch, Mapping):
        return _only(batch, names)
    rows, items, mask = batch
    return _only(rows, names), _only(items, names), mask


def _only(columns: Columns, names: Container[str]) -> dict[str, Tensor]:
    return {name: column for name, column in columns.items() if name in names}


class DeviceColumns(dict[str, Tensor]):
    """Columns that were moved to a device.

    Attributes:
        loaded: the whole batch as the loader gave it, on the CPU.
    """

    loaded: Batch


def on_device(batch: Batch, model: BaseModel) -> Batch:
    """A batch of the same form with all that the model reads of it on the model's device; itself on the CPU.

    FuxiCTR moves each column with a copy that waits for all that the device still has to do. These do not wait: the
    device works on one batch while Python prepares the next.
    """
    if model.device.type == "cpu" or as_loaded(batch) is not batch:
        return batch
    columns = batch if isinstance(batch, Mapping) else batch[0]
    moved = DeviceColumns(_moved(columns, model))
    moved.loaded = batch
    if isinstance(batch, Mapping):
        return moved
    return moved, _moved(batch[1], model), moved_to(model.device, batch[2])


def as_loaded(batch: Batch) -> Batch:
    """The batch that `on_device` was given, or the batch itself."""
    return getattr(batch if isinstance(batch, Mapping) else batch[0], "loaded", batch)


def moved_to(device: torch.device, tensor: Tensor) -> Tensor:
    """The tensor on a device, by a copy that does not wait: on a GPU, from memory that the system cannot swap out."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.contiguous().pin_memory()
    return tensor.to(device, non_blocking=tensor.device.type == "cpu")


def _moved(columns: Columns, model: BaseModel) -> dict[str, Tensor]:
    """What no model reads (columns of type meta) stays where it is."""
    specs = model.feature_map.features
    unread = {name for name, spec in specs.items() if spec["type"] == "meta"}
    return {name: column if name in unread else moved_to(model.device, column) for name, column in columns.items()}


def rows_of(batch: Columns | LongBatch) -> int:
    """`B`, the number of rows."""
    # Not len(): torch.export would take its number for a constant.
    return next(iter(batch.values())).shape[0] if isinstance(batch, Mapping) else batch[2].shape[0]


def some_rows(batch: Columns | LongBatch, rows: slice) -> Batch:
    """The batch with some of its rows alone."""
    if isinstance(batch, Mapping):
        return {name: column[rows] for name, column in batch.items()}
    columns, items, mask = batch
    places = mask.shape[1] + 1
    of_items = slice(rows.start * places, rows.stop * places)
    return (
        {name: column[rows] for name, column in columns.items()},
        {name: column[of_items] for name, column in items.items()},
        mask[rows],
    )


def synthetic_batch(feature_map: FeatureMap, rows: int = 4) -> dict[str, Tensor]:
    """Random ids and values as FuxiCTR's loaders give them; torch's own random state is not used."""
    generator = torch.Generator().manual_seed(0)
    batch = {name: _column(spec, rows, generator) for name, spec in feature_map.features.items()}
    for label in feature_map.labels:
        batch[label] = torch.randint(0, 2, (rows,), generator=generator).double()
    return batch


def synthetic_long_batch(feature_map: FeatureMap, rows: int = 4, length: int = 3) -> LongBatch:
    """A `synthetic_batch` in the form of FuxiCTR's LongCTR loader."""
    generator = torch.Generator().manual_seed(0)
    batch = synthetic_batch(feature_map, rows)
    items = {name: spec for name, spec in feature_map.features.items() if spec.get("source") == "item"}
    places = rows * (length + 1)
    columns = {name: _column(spec, places, generator) for name, spec in items.items()}
    return {name: batch[name] for name in batch if name not in items}, columns, torch.ones(rows, length)


def _column(spec: Mapping[str, Any], rows: int, generator: torch.Generator) -> Tensor:
    kind = spec["type"]
    if kind in ("categorical", "meta"):
        return torch.randint(0, max(spec.get("vocab_size", 2), 1), (rows,), generator=generator)
    if kind == "sequence":
        shape = (rows, spec["max_len"])
        return torch.randint(0, spec["vocab_size"], shape, generator=generator, dtype=torch.int32)
    return torch.rand((rows, spec["pretrain_dim"]) if kind == "embedding" else (rows,), generator=generator)


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
