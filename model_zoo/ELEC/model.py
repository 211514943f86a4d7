"""ELEC on any backbone: a gain network, which a language model helps, teaches the plain backbone.

"ELEC: Efficient Large Language Model-Empowered Click-Through Rate Prediction", arXiv 2509.07594.
"""

import logging
from typing import Any

from fuxictr_llm.distillation import Distilled

from .config import ELECConfig


class ELEC(Distilled):
    """The vanilla network's part: two terms of the loss, and nothing at inference."""

    @classmethod
    def encode(cls, config: ELECConfig, run: Any) -> dict[str, Any]:
        """The language model's vectors of the rows' texts."""
        from .stages import encode

        encode(config, run)
        return {}

    @classmethod
    def prepare(cls, config: ELECConfig, run: Any) -> dict[str, Any]:
        """Everything up to the trained teacher, each part cached."""
        if not config.is_on:
            logging.warning("ELEC is off: alpha and beta are both 0")
            return {}
        from .stages import prepare_teacher

        run.prepared = prepare_teacher(config, run)
        return {"teacher_width": run.prepared.width or None}

    def start(self, run: Any) -> None:
        if run.prepared is not None:
            self.learn_from(run.prepared)
