"""ELEC on any backbone: a gain network, which a language model helps, teaches the plain backbone.

"ELEC: Efficient Large Language Model-Empowered Click-Through Rate Prediction", arXiv 2509.07594.
"""

import logging
from typing import Any

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.distillation import Distilled, JointTeacher
from fuxictr_llm.model_zoo.ELEC.config import ELECConfig


class ELEC(Distilled):
    """The vanilla network's part: two terms of the loss, and nothing at inference."""

    controls = {"self": {"teacher": "self"}, "noise": {"h": "noise"}}

    @classmethod
    def encode(cls, config: ELECConfig, run: Any) -> dict[str, Any]:
        """The language model's vectors of the rows' texts."""
        from fuxictr_llm.model_zoo.ELEC.stages import encode

        encode(config, run)
        return {}

    @classmethod
    def prepare(cls, config: ELECConfig, run: Any) -> dict[str, Any]:
        """Everything up to the trained teacher, each part cached."""
        if not config.is_on:
            logging.warning("ELEC is off: alpha and beta are both 0")
            return {}
        if config.schedule == "joint" and config.warmup_epochs >= run.params["epochs"]:
            raise UserError(
                f"warmup_epochs {config.warmup_epochs} leaves nothing of {run.params['epochs']} epochs: the vanilla "
                "network would never listen to its teacher; lower it, or raise epochs"
            )
        from fuxictr_llm.model_zoo.ELEC.stages import prepare_teacher

        run.prepared = prepare_teacher(config, run)
        return {"teacher_width": run.prepared.width or None}

    def on_train_begin(self, run: Any) -> None:
        if run.prepared is not None:
            self.learn_from(run.prepared)

    def on_train_end(self, run: Any) -> None:
        teacher = self.teacher
        super().on_train_end(run)
        if isinstance(teacher, JointTeacher):  # a staged one has been measured when it was trained
            from fuxictr_llm.data.loader import make_loaders
            from fuxictr_llm.data.slices import FrequencySlices
            from fuxictr_llm.training.networks import measure

            name = "twin" if self.config.teacher == "self" else "gain"
            _, valid_rows = make_loaders(run.feature_map, run.params, "train")
            slices = FrequencySlices.of(run)
            run.networks[name] = measure(run, teacher.model, valid_rows, teacher.batch_for_model, slices)
