"""Two add-ons with which a backbone is tried: one that does nothing, and one that uses all taps."""

from typing import Any

import torch
from torch import Tensor, nn

from fuxictr_llm.anatomy import Anatomy
from fuxictr_llm.enhancement import Enhancement, Seen


class Idle(Enhancement):
    """Has a layer, and taps that are all switched off."""

    method_name = "Idle"

    def __init__(self, config: Any, anatomy: Anatomy):
        super().__init__(config, anatomy)
        self.layer = nn.Linear(3, 3)

    def active_taps(self) -> frozenset[str]:
        return frozenset()


class AllTaps(Enhancement):
    """Uses the taps that the backbone has, with a parameter in each term that it returns."""

    method_name = "AllTaps"

    def __init__(self, config: Any, anatomy: Anatomy):
        super().__init__(config, anatomy)
        width = sum(anatomy.widths)
        self.shift = nn.Parameter(torch.full((width,), 0.1)) if width else None
        self.pull = nn.Parameter(torch.full((anatomy.embedding_dim,), 0.1)) if anatomy.fields else None
        self.weight = nn.Parameter(torch.full((len(anatomy.tasks),), 0.3))

    def active_taps(self) -> frozenset[str]:
        without = {"representation": self.shift is None, "embeddings": self.pull is None, "loss": self.pull is None}
        return super().active_taps() - {tap for tap, is_missing in without.items() if is_missing}

    def inputs(self, inputs: Any) -> None:
        """Read, so that this tap is active."""

    def embeddings(self, embeddings: Tensor) -> None:
        """Read, so that this tap is active."""

    def representation(self, representation: Tensor) -> Tensor:
        return representation + self.shift

    def logit(self, embeddings: Tensor, logit: Tensor) -> Tensor:
        return self.weight * logit.detach().tanh()

    def loss(self, seen: Seen, y_true: Tensor) -> Tensor:
        return ((seen.embeddings - self.pull) ** 2).mean()
