"""How the optimizer of a model computes its steps."""

from fuxictr.pytorch.models import BaseModel
from torch import nn


def clip_gradients(model: BaseModel, max_norm: float) -> None:
    """Scale the gradients of all parameters so that their norm is at most `max_norm`."""
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
