"""Builds a model and trains it with FuxiCTR's `fit`, with checks of what FuxiCTR monitors.

Weights are saved whole or not at all. FuxiCTR keeps those with the best value of `monitor`; where it is undefined or
NaN, FuxiCTR would keep none, or the first ones, without a word.
"""

import inspect
import math
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fuxictr.metrics
import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import seed_everything

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.files import explain_write_errors, replacing
from fuxictr_llm.data.in_memory import read_slices
from fuxictr_llm.enhancement.model import set_weight_decay
from fuxictr_llm.host.batches import monitored, task_settings
from fuxictr_llm.host.columns import as_tuples
from fuxictr_llm.host.embeddings import (
    initialize_skipped,
    readable_vocabulary,
    vectors_refused,
    warn_of_uninitialized,
    warn_of_unused,
    zero_padding,
)

OTHER_MODEL_ROOT = "name another folder with --set model_root=DIR"
# Averages over the groups with both classes: undefined without such a group.
NEED_BOTH_CLASSES = ("gAUC", "avgAUC")
# Metrics that are finite even where all predictions are NaN.
RANKINGS = ("MRR", "NDCG")
SLICE_ROWS = 100_000

# FuxiCTR divides the work of group metrics among half of the cores, and half of one core is none.
fuxictr.metrics.mp = SimpleNamespace(Pool=multiprocessing.Pool, cpu_count=lambda: max(2, multiprocessing.cpu_count()))


def build(cls: Callable[..., BaseModel], feature_map: FeatureMap, params: Mapping[str, Any]) -> BaseModel:
    """A model with fresh weights, after seeding everything: they do not depend on what was drawn before.

    Raises:
        UserError: no model of the class can be built with these settings.
    """
    torch.set_num_threads(params["num_threads"])
    seed_everything(params["seed"])
    _check_constructor(cls, params)
    try:
        with readable_vocabulary(feature_map):
            backbone_cls: Any = getattr(cls, "backbone_cls", cls)
            given = as_tuples(params, backbone_cls)
            model = cls(feature_map, **{**given, **task_settings(cls, feature_map, params)})
        initialize_skipped(model)
        zero_padding(model)
        warn_of_uninitialized(model)
        warn_of_unused(model, feature_map)
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise UserError(f"{cls.__name__} has no trainable parameter: there is nothing to train")
        if not hasattr(model, "optimizer"):
            raise UserError(
                f"the constructor of {cls.__name__} makes no optimizer; it has to end with self.compile("
                'kwargs["optimizer"], kwargs["loss"], learning_rate), self.reset_parameters(), self.model_to_device()'
            )
        model.regularization_loss()  # FuxiCTR reads the regularizers only when it trains
        set_weight_decay(model.optimizer, params.get("weight_decay"))
        return model
    except UserError as error:  # also where a method cannot tap the model, because its forward pass fails
        if message := vectors_refused(cls.__name__, feature_map, error):
            raise UserError(message) from error
        raise
    except Exception as error:  # a constructor fails in many ways on settings that it does not check
        # torch's message, which FuxiCTR replaces by one about an unknown optimizer.
        if "empty parameter list" in f"{error} {error.__context__}":
            raise UserError(f"{cls.__name__} has no trainable parameter: there is nothing to train") from error
        message = vectors_refused(cls.__name__, feature_map, error)
        message = message or f"{cls.__name__} cannot be built with these settings: {reason_of(error)}"
        raise UserError(message) from error


def _check_constructor(cls: Callable[..., BaseModel], params: Mapping[str, Any]) -> None:
    """Check that the constructor takes all settings, as FuxiCTR gives them.

    Raises:
        UserError: it does not.
    """
    cls = getattr(cls, "backbone_cls", cls)
    taken = inspect.signature(cls).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
        return
    rejected = [key for key in params if key not in taken]
    if rejected:
        raise UserError(
            f"the constructor of {cls.__name__} rejects the key {rejected[0]!r}; give it **kwargs, and its base "
            "class's constructor too: FuxiCTR gives every setting to both"
        )


def fit(model: BaseModel, train_rows: Any, valid_rows: Any, params: dict[str, Any]) -> int:
    """Train until early stopping; the model ends with the weights of the best epoch, whose number is returned.

    Raises:
        UserError: no weights would be saved, the first step fails, training diverged, or the disk is full.
    """
    steps = len(train_rows) * params["epochs"]
    if (params.get("eval_steps") or 0) > steps:
        raise UserError(
            f"eval_steps {params['eval_steps']} is more than all {steps} steps of training: nothing is kept"
        )
    best = _BestEpoch(model, params)
    try:
        with best.tracked():
            model.fit(train_rows, validation_data=valid_rows, **params)
    except Exception as error:  # anyone's class can fail in any way
        message = _explain(model, error, params)
        if message is None:
            raise
        raise UserError(message) from error
    return best.epoch


def _explain(model: BaseModel, error: Exception, params: Mapping[str, Any]) -> str | None:
    """The message for an error in training that data, settings or model class caused; None for another."""
    name = type(model).__name__
    if isinstance(error, UserError):
        return None
    if isinstance(error, KeyError) and str(error).strip("'").endswith("_pred"):
        return f"forward of {name} returns no {error}; return a dict that has it"
    # The messages of metrics and of torch's cross entropy for predictions that are NaN.
    if isinstance(error, ValueError | RuntimeError) and any(sign in str(error) for sign in ("NaN", "between 0 and 1")):
        return f"training diverged: predictions are NaN; lower learning_rate (now {params['learning_rate']})"
    if model._total_steps > 1:
        return None
    if message := vectors_refused(name, model.feature_map, error):
        return message
    data = f"data set {model.feature_map.dataset_id!r}"
    message = f"{name} fails in its first step of training on {data} ({type(error).__name__}: {reason_of(error)})"
    own_batches = type(model).get_inputs is not BaseModel.get_inputs
    if params.get("user_info") and not own_batches:
        return f"{message}; the data has long sequences, which LongCTR models take: LongCTR/DIN of --zoo DIR, say"
    if own_batches and not params.get("user_info"):
        return f"{message}; if it is a LongCTR model, it needs data with user_info and item_info"
    return message


class _BestEpoch:
    """Follows FuxiCTR's `fit`: the epoch of the last saved weights, atomic saving, and checks of the metrics."""

    def __init__(self, model: BaseModel, params: Mapping[str, Any]):
        self.model, self.params, self.epoch = model, params, 0

    def save(self, checkpoint: str) -> None:
        with explain_write_errors(Path(checkpoint), OTHER_MODEL_ROOT), replacing(checkpoint) as temporary:
            type(self.model).save_weights(self.model, str(temporary))
        self.epoch = self.model._epoch_index + 1

    def evaluated(self, metrics: Mapping[str, float], *args: Any, **kwargs: Any) -> None:
        check_evaluation(self.model, metrics, self.params)
        type(self.model).checkpoint_and_earlystop(self.model, metrics, *args, **kwargs)

    @contextmanager
    def tracked(self) -> Iterator[None]:
        """In the block, the model saves and evaluates through this object."""
        self.model.save_weights, self.model.checkpoint_and_earlystop = self.save, self.evaluated
        try:
            yield
        finally:  # or the model could be neither copied nor pickled
            del self.model.save_weights, self.model.checkpoint_and_earlystop


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
