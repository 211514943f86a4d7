"""CTRL on any backbone: it starts from weights that were aligned with the rows' texts, and then learns clicks alone.

"CTRL: Connect Collaborative and Language Model for CTR Prediction", arXiv 2306.02841.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.runs import Run
from fuxictr_llm.enhancement import Enhancement
from fuxictr_llm.enhancement.base import Trial
from fuxictr_llm.enhancement.model import enhance

from .alignment import Alignment
from .config import CTRLConfig
from .training import AlignmentTraining, TextsOfRows

TRIAL_WIDTH = 8  # of the text vectors of a self-check


class _Waves(TextsOfRows):
    """Vectors made of a column's ids, for a self-check."""

    def __call__(self, columns: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        rows = next(iter(columns.values())).float().view(-1, 1)
        return torch.sin(rows * torch.arange(1.0, TRIAL_WIDTH + 1)), torch.arange(len(rows))


class CTRL(Enhancement):
    """Stage 2, which is the plain backbone's training from other weights: no term, no parameter, no tap."""

    colour = "#56B4E9"
    controls = {"shuffled": {"texts": "shuffled"}, "noise": {"texts": "noise"}}
    reads_embeddings = False

    @classmethod
    def encode(cls, config: CTRLConfig, run: Run) -> dict[str, Any]:
        """The language model's vectors of the rows' texts."""
        from .stages import encode

        encode(config, run)
        return {}

    @classmethod
    def prepare(cls, config: CTRLConfig, run: Run) -> dict[str, Any]:
        """Stage 1, cached."""
        if not config.align_epochs:
            logging.warning("CTRL is off: align_epochs is 0")
            return {}
        from .stages import aligned_backbone

        run.prepared = aligned_backbone(config, run)
        return {}

    def backbone_start(self, run: Run) -> Mapping[str, Tensor]:
        if run.prepared is None:
            return {}
        from .stages import read_state

        return read_state(run.prepared)

    @classmethod
    def self_check(cls, trial: Trial) -> Sequence[str]:
        """The backbone can be aligned with random text vectors, and all but what is behind its representation moves."""
        model = trial.build(enhance(trial.cls, Alignment), text_width=TRIAL_WIDTH)
        before = {name: weight.detach().clone() for name, weight in model.named_parameters()}

        AlignmentTraining(model, trial.batches(), _Waves(), epochs=1, learning_rate=0.01).run()
        moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
        unmoved = [name for name in before if name.startswith("enhancement.") and name not in moved]
        if unmoved or not any(name for name in moved if not name.startswith("enhancement.")):
            raise UserError(f"{', '.join(unmoved) or trial.cls.__name__} did not move in the alignment")
        trial.trained(trial.enhanced(cls)).load_state_dict(model.backbone_state_dict(), strict=True)
        return () if model.enhancement.anatomy.widths else ["a representation: the field embeddings are aligned"]
