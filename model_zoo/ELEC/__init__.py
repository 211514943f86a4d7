"""ELEC: a backbone that sees a language model's vector of the row teaches the plain backbone, which alone is served."""

from fuxictr_llm.model_zoo.ELEC.config import ELECConfig
from fuxictr_llm.model_zoo.ELEC.model import ELEC
from fuxictr_llm.registry import register_method

register_method(name="ELEC", config_cls=ELECConfig, model_cls=ELEC)
