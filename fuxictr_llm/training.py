"""FuxiCTR's own models and fit, with errors that users understand and weights that are saved whole or not at all."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import seed_everything

from fuxictr_llm.enhancement import set_weight_decay
from fuxictr_llm.errors import UserError, reason_of
from fuxictr_llm.files import explain_write_errors, replacing
from fuxictr_llm.pretrained import readable_vocabulary, zero_padding
from fuxictr_llm.tasks import task_settings

OTHER_MODEL_ROOT = "name another folder with --set model_root=DIR"


def build(cls: Callable[..., BaseModel], feature_map: FeatureMap, params: Mapping[str, Any]) -> BaseModel:
    """A model with fresh weights, after seeding everything: what went before does not show in them.

    Raises:
        UserError: the settings do not give a model of that class.
    """
    torch.set_num_threads(params["num_threads"])
    seed_everything(params["seed"])
    _check_constructor(cls, params)
    try:
        with readable_vocabulary(feature_map):
            model = cls(feature_map, **{**params, **task_settings(cls, feature_map, params)})
        zero_padding(model)
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
    except UserError:
        raise
    except Exception as error:  # a constructor fails in many ways on settings that it does not check
        # What torch's optimizers say, which FuxiCTR takes for an optimizer that is not there.
        if "empty parameter list" in f"{error} {error.__context__}":
            raise UserError(f"{cls.__name__} has no trainable parameter: there is nothing to train") from error
        raise UserError(f"{cls.__name__} cannot be built with these settings: {reason_of(error)}") from error


def _check_constructor(cls: Callable[..., BaseModel], params: Mapping[str, Any]) -> None:
    """FuxiCTR gives every setting to the constructor.

    Raises:
        UserError: it does not take all of them.
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
    """Train until early stopping; the epoch whose weights were kept, which the model then has.

    Raises:
        UserError: the model cannot read the batches, nothing would be kept, training diverged, or weights cannot be
            written.
    """
    _check_form(model, valid_rows, params)
    steps = len(train_rows) * params["epochs"]
    if (params.get("eval_steps") or 0) > steps:
        raise UserError(
            f"eval_steps {params['eval_steps']} is more than all {steps} steps of training: nothing is kept"
        )
    best = _BestEpoch(model)
    try:
        with best.noting():
            model.fit(train_rows, validation_data=valid_rows, **params)
    except KeyError as error:
        if not str(error.args[0]).endswith("_pred"):
            raise
        raise UserError(f"forward of {type(model).__name__} returns no {error}; return a dict that has it") from error
    except (ValueError, RuntimeError) as error:
        # What the metrics and torch's cross entropy say of predictions that are NaN.
        if not any(sign in str(error) for sign in ("NaN", "between 0 and 1")):
            raise
        rate = params["learning_rate"]
        raise UserError(f"training diverged: predictions are NaN; lower learning_rate (now {rate})") from error
    return best.epoch


def _check_form(model: BaseModel, valid_rows: Any, params: Mapping[str, Any]) -> None:
    """Whether the model reads batches of the data's form: tuples of long sequences, or columns."""
    is_long, own = bool(params.get("user_info")), type(model).get_inputs is not BaseModel.get_inputs
    if not (is_long or own):
        return
    try:
        model.get_inputs(next(iter(valid_rows)))  # not of train: that would change the order of its rows
    except Exception as error:  # each class fails in a way of its own
        data = f"data set {params['dataset_id']!r}"
        form = f"{data} has long sequences (user_info), which LongCTR models take, such as LongCTR/DIN of --zoo DIR"
        form = form if is_long else f"a LongCTR model takes a data set with user_info and item_info, not {data}"
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise UserError(f"{params['model']} cannot read the batches ({reason}); {form}") from error


class _BestEpoch:
    """Notes at which epoch the weights were last saved, and has them saved whole or not at all."""

    def __init__(self, model: BaseModel):
        self.model, self.epoch = model, 0

    def save(self, checkpoint: str) -> None:
        with explain_write_errors(Path(checkpoint), OTHER_MODEL_ROOT), replacing(checkpoint) as temporary:
            type(self.model).save_weights(self.model, str(temporary))
        self.epoch = self.model._epoch_index + 1

    @contextmanager
    def noting(self) -> Iterator[None]:
        self.model.save_weights = self.save
        try:
            yield
        finally:
            del self.model.save_weights  # the model is as its class has it: it can be copied and pickled
