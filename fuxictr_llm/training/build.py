"""Builds a model with fresh weights, ready for training; what cannot be built is said in one line."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import seed_everything

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.enhancement.model import set_weight_decay
from fuxictr_llm.host.batches import task_settings
from fuxictr_llm.host.columns import as_tuples
from fuxictr_llm.host.embeddings import (
    complete,
    readable_vocabulary,
    warn_of_uninitialized,
    warn_of_unused,
    zero_padding,
)
from fuxictr_llm.training.optimizers import configure_optimizer
from fuxictr_llm.training.row_updates import RowUpdates
from fuxictr_llm.training.step import StepOfFit, has_own_step

OTHER_MODEL_ROOT = "name another folder with --set model_root=DIR"


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
        complete(model)
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
        configure_optimizer(model, params)
        if isinstance(model.optimizer, RowUpdates):
            if has_own_step(model):
                raise UserError(
                    f"embedding_update: rows: {cls.__name__} has a training step of its own, which knows no rows; set "
                    "embedding_update: dense"
                )
            model.train_step = StepOfFit(model)  # so that FuxiCTR's fit works
        return model
    except UserError:
        raise
    except Exception as error:  # a constructor fails in many ways on settings that it does not check
        # torch's message, which FuxiCTR replaces by one about an unknown optimizer.
        if "empty parameter list" in f"{error} {error.__context__}":
            raise UserError(f"{cls.__name__} has no trainable parameter: there is nothing to train") from error
        raise UserError(f"{cls.__name__} cannot be built with these settings: {reason_of(error)}") from error


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
