"""LLaCTR: field vectors of a language model guide the embeddings (FRE) and weight the pairs of fields (FIE)."""

from fuxictr_llm.model_zoo.LLaCTR.config import LLaCTRConfig
from fuxictr_llm.model_zoo.LLaCTR.model import LLaCTR
from fuxictr_llm.registry import register_method

register_method(name="LLaCTR", config_cls=LLaCTRConfig, model_cls=LLaCTR)
