"""Text vectors of a language model that learns with the backbone (`tuning: lora`): stage 1 trains both sides.

Shape symbols: `n` texts, `D_llm` width of the language model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import set_seed

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.llm.language_model import LanguageModel
from fuxictr_llm.llm.lora import with_lora
from fuxictr_llm.llm.texts.row_texts import UnitTexts
from fuxictr_llm.llm.vectors.standardized import Standardized

from .config import CTRLConfig


class TunedTexts:
    """Vectors of texts with gradients for LoRA, scaled as those of the untuned language model: there it starts from.

    Args:
        language_model: loaded; it is wrapped in place.
        units: the texts of each unit.
        scaled: their untuned vectors.
        config: LoRA's settings, and how many tokens are read.
        seed: of LoRA's first weights.

    Raises:
        UserError: LoRA finds nothing to tune.
    """

    def __init__(
        self,
        language_model: LanguageModel,
        units: Sequence[UnitTexts],
        scaled: Sequence[Standardized],
        config: CTRLConfig,
        seed: int,
    ):
        set_seed(seed)
        self.language_model, self.units, self.scaled = language_model, units, scaled
        self.limit = config.llm_max_text_tokens
        language_model.model = with_lora(language_model.model, config)
        language_model.model.train()

    def __call__(self, unit: int, positions: Tensor) -> Tensor:
        """float32 `[n, D_llm]` of the texts at positions of a unit `[n]`; equal ones are encoded once."""
        model = self.language_model
        distinct, places = positions.unique(return_inverse=True)
        rows = [model.framed(model.tokens(self.units[unit][int(position)], self.limit)) for position in distinct]
        longest = max(map(len, rows))
        if longest > (model.positions or longest):
            raise UserError(
                f"a text of {longest} tokens does not fit into the {model.positions} positions of the language model; "
                "lower llm_max_text_tokens, or take another language_model"
            )
        vectors = model.embed(model.batch([row or [model.padding] for row in rows]))
        scaled, device = self.scaled[unit], vectors.device
        real = torch.tensor([[bool(row)] for row in rows], device=device)
        return ((vectors - scaled.mean.to(device)) * scaled.scale.to(device) * real)[places.to(device)]

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """LoRA's."""
        named = self.language_model.model.named_parameters()
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take weights, by their names."""
        with torch.no_grad():
            for name, parameter in self.named_parameters().items():
                parameter.copy_(state[name])
