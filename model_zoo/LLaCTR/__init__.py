"""LLaCTR: field vectors of a language model guide the embeddings (FRE) and weight the pairs of fields (FIE)."""

from fuxictr_llm.registry import register_method

from .config import LLaCTRConfig
from .model import LLaCTR

register_method(name="LLaCTR", config_cls=LLaCTRConfig, model_cls=LLaCTR)
