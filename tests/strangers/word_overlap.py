"""A method of a stranger's: pairs of fields whose descriptions share words interact, `a c_ij <e_i, e_j>` summed."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fuxictr_llm.common.checks import STRICT
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.enhancement import Enhancement
from fuxictr_llm.enhancement.folded import PairWeights
from fuxictr_llm.enhancement.kernels import pair_matrix, pair_sums
from fuxictr_llm.llm.catalog import load_catalog
from fuxictr_llm.registry import register_method


@dataclass(config=STRICT, kw_only=True)
class WordOverlapConfig:
    strength: float = 1.0
    overlap_of: str = "words"  # or `neighbours`: each field has the words of the next one
    field_words: dict[str, list[str]] | None = None


class WordOverlap(Enhancement):
    controls = {"neighbours": {"overlap_of": "neighbours"}}

    def __init__(self, config: WordOverlapConfig, anatomy: Any):
        super().__init__(config, anatomy)
        if config.field_words is None or len(anatomy.fields) < 2:
            raise UserError("WordOverlap needs two embedded fields, and field_words, which its prepare() makes")
        words = [{*config.field_words[name]} for name in anatomy.fields]
        pairs = [(one, two) for i, one in enumerate(words) for two in words[i + 1 :]]
        self.register_buffer("overlaps", torch.tensor([len(one & two) / len(one | two) for one, two in pairs]))
        self.scale = nn.Parameter(torch.tensor(config.strength))

    @classmethod
    def prepare(cls, config: WordOverlapConfig, run: Any) -> dict[str, Any]:
        fields = load_catalog(run.feature_map, run.data_dir, run.params.get("field_config")).fields
        texts = [field.text.lower().split() for field in fields]
        shift = config.overlap_of == "neighbours"
        return {"field_words": {field.name: texts[i - shift] for i, field in enumerate(fields)}}

    def logit(self, embeddings: Tensor, logit: Tensor) -> Tensor:
        return pair_sums(pair_matrix(self.scale * self.overlaps, embeddings.shape[1]), embeddings)

    @classmethod
    def fold(cls, config: WordOverlapConfig, anatomy: Any, state: Mapping[str, Tensor]) -> Enhancement:
        return PairWeights(None, anatomy, state["scale"] * state["overlaps"])

    @classmethod
    def self_check(cls, trial: Any) -> Sequence[str]:
        trial.trained(trial.enhanced(cls, field_words={name: ["the", name] for name in trial.feature_map.features}))
        return ()


register_method(name="WordOverlap", config_cls=WordOverlapConfig, model_cls=WordOverlap)
