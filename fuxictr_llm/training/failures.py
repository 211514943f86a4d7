"""Why a training failed, in words: data, settings and model classes make FuxiCTR and torch fail from deep inside."""

from collections.abc import Mapping
from typing import Any

from fuxictr.pytorch.models import BaseModel

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.training.devices import lost_process
from fuxictr_llm.training.listener import Stopped
from fuxictr_llm.training.monitoring import Diverged

AFFECTS_RESULTS = False  # see common/code_digest.py


def explain(model: BaseModel, error: Exception, params: Mapping[str, Any]) -> UserError | None:
    """An error in training that data, settings or model class caused, in words; None for another."""
    name = type(model).__name__
    if isinstance(error, UserError | Stopped):
        return None
    if message := lost_process(error):
        return UserError(message)
    if isinstance(error, KeyError) and str(error).strip("'").endswith("_pred"):
        return UserError(f"forward of {name} returns no {error}; return a dict that has it")
    # The messages of metrics and of torch's cross entropy for predictions that are NaN.
    if isinstance(error, ValueError | RuntimeError) and any(sign in str(error) for sign in ("NaN", "between 0 and 1")):
        return Diverged(f"training diverged: predictions are NaN; lower learning_rate (now {params['learning_rate']})")
    if model._total_steps > 1:
        return None
    data = f"data set {model.feature_map.dataset_id!r}"
    message = f"{name} fails in its first step of training on {data} ({type(error).__name__}: {reason_of(error)})"
    own_batches = type(model).get_inputs is not BaseModel.get_inputs
    if params.get("user_info") and not own_batches:
        message += "; the data has long sequences, which LongCTR models take: LongCTR/DIN of --zoo DIR, say"
    if own_batches and not params.get("user_info"):
        message += "; if it is a LongCTR model, it needs data with user_info and item_info"
    return UserError(message)
