"""KAR: knowledge texts of users and items, adapted by experts that are trained with the backbone, as columns of it."""

from fuxictr_llm.registry import register_method

from .config import KARConfig
from .model import KAR

register_method(name="KAR", config_cls=KARConfig, model_cls=KAR)
