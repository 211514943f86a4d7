"""LLMEmb: the embeddings of feature values start from a language model's vectors of them."""

from fuxictr_llm.registry import register_method

from .config import LLMEmbConfig
from .model import LLMEmb

register_method(name="LLMEmb", config_cls=LLMEmbConfig, model_cls=LLMEmb)
