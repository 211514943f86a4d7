"""LLMFeature: the language model's vectors of a row's user, item and so on, as frozen columns of the backbone."""

from fuxictr_llm.registry import register_method

from .config import LLMFeatureConfig
from .model import LLMFeature

register_method(name="LLMFeature", config_cls=LLMFeatureConfig, model_cls=LLMFeature)
