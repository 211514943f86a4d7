"""LLMEmb: the embeddings of feature values start from a language model's vectors of them."""

from fuxictr_llm.model_zoo.LLMEmb.config import LLMEmbConfig
from fuxictr_llm.model_zoo.LLMEmb.model import LLMEmb
from fuxictr_llm.registry import register_method

register_method(name="LLMEmb", config_cls=LLMEmbConfig, model_cls=LLMEmb)
