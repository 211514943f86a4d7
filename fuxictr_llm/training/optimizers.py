"""How the optimizer of a model computes its steps: torch's fused kernels, row-wise updates, clipping of gradients."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from fuxictr.pytorch.models import BaseModel
from torch import nn

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.training.row_updates import ROW_FORMS, RowUpdates, prepare_tables

# Kernels that take all of a step in one pass over memory, by the devices that have them. On the CPU they are
# deterministic and the fastest that torch has (README.md beside this file).
FUSED = {
    torch.optim.Adam: ("cpu", "cuda"),
    torch.optim.AdamW: ("cpu", "cuda"),
    torch.optim.SGD: ("cpu", "cuda"),
    torch.optim.Adagrad: ("cpu",),
}
CLIP_EPSILON = 1e-6  # torch's


def configure_optimizer(model: BaseModel, params: Mapping[str, Any]) -> None:
    """Make the model's optimizer as the settings want it; its groups of parameters and their options stay.

    Args:
        model: has an optimizer that made no step yet.
        params: `optimizer_impl` and `embedding_update` are read.

    Raises:
        UserError: the optimizer has no such form, or not on this device.
    """
    given = type(model.optimizer)
    rows = params.get("embedding_update") == "rows"
    fused = is_fused(given, model.device, params.get("optimizer_impl"))
    if rows and given not in ROW_FORMS:
        raise UserError(
            f"embedding_update: rows: optimizer {given.__name__} has no row-wise form; take one of "
            f"{', '.join(cls.__name__ for cls in ROW_FORMS)}, or embedding_update: dense"
        )
    if rows and any(group.get("momentum") or group.get("amsgrad") for group in model.optimizer.param_groups):
        raise UserError("embedding_update: rows: an optimizer with momentum or amsgrad has no row-wise form")
    if not rows and not fused:
        return
    cls = ROW_FORMS[given] if rows else given
    model.optimizer = _remade(cls, given, model.optimizer, fused)
    if rows:
        prepare_tables(model, model.optimizer)


def is_fused(cls: type[torch.optim.Optimizer], device: torch.device, impl: str | None) -> bool:
    """Whether an optimizer takes its steps by torch's fused kernels.

    Raises:
        UserError: it is told to, and torch has none for it on the device.
    """
    has_kernel = device.type in FUSED.get(cls, ())
    if impl == "fused" and not has_kernel:
        raise UserError(
            f"optimizer_impl: fused: torch has no fused {cls.__name__} on {device.type}; it has "
            f"{', '.join(one.__name__ for one, devices in FUSED.items() if device.type in devices) or 'none there'}; "
            "or set optimizer_impl: null"
        )
    return has_kernel and impl != "fuxictr"


def _remade(
    cls: type[torch.optim.Optimizer], given: type[torch.optim.Optimizer], optimizer: torch.optim.Optimizer, fused: bool
) -> torch.optim.Optimizer:
    """The same optimizer as another class, and by fused kernels or not."""
    taken = inspect.signature(given).parameters
    how = {"fused": True, "foreach": False} if fused else {}
    groups = [
        {key: value for key, value in {**group, **how}.items() if key in taken or key == "params"}
        for group in optimizer.param_groups
    ]
    defaults = {key: value for key, value in {**optimizer.defaults, **how}.items() if key in taken}
    return cls(groups, **defaults)


def clip_gradients(model: BaseModel, max_norm: float) -> None:
    """Scale the gradients of all parameters so that their norm is at most `max_norm`.

    Of a table that is updated by rows, the rows of the batch count, with the gradients of their regularizers.
    """
    parameters = [*model.parameters()]
    if isinstance(model.optimizer, RowUpdates):
        parameters += model.optimizer.finish_gradients()
    norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    # On the CPU a norm is known at once, and to scale by 1 would read and write all gradients.
    if norm.device.type != "cpu" or not max_norm / (norm + CLIP_EPSILON) >= 1:
        nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
