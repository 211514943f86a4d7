"""CTRL: before it learns clicks, a backbone learns which text belongs to a row; the backbone alone is served."""

from fuxictr_llm.registry import register_method

from .config import CTRLConfig
from .model import CTRL

register_method(name="CTRL", config_cls=CTRLConfig, model_cls=CTRL)
