"""ELEC: a backbone that sees a language model's vector of the row teaches the plain backbone, which alone is served."""

from fuxictr_llm.registry import register_method

from .config import ELECConfig
from .model import ELEC

register_method(name="ELEC", config_cls=ELECConfig, model_cls=ELEC)
