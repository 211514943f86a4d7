"""A method reaches into any FuxiCTR model through taps, and the model's class stays as it is."""

from fuxictr_llm.enhancement.base import TAPS, Enhancement, FieldProjections
from fuxictr_llm.enhancement.columns import AddedColumn
from fuxictr_llm.enhancement.model import EnhancedModel, enhance, set_weight_decay

__all__ = ["TAPS", "AddedColumn", "EnhancedModel", "Enhancement", "FieldProjections", "enhance", "set_weight_decay"]
