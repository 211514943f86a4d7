"""ELEC on any backbone: a gain network, which a language model helps, teaches the plain backbone.

"ELEC: Efficient Large Language Model-Empowered Click-Through Rate Prediction", arXiv 2509.07594.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.runs import Run
from fuxictr_llm.distillation import Distilled, JointTeacher, Teacher
from fuxictr_llm.enhancement.anatomy import tap_keys
from fuxictr_llm.enhancement.base import Trial
from fuxictr_llm.host.batches import Batch, columns_of, with_columns

from .config import ELECConfig
from .gain import gain_class
from .head import VECTOR

TRIAL_WIDTH = 8  # of the vectors of a self-check


class ELEC(Distilled):
    """The vanilla network's part: two terms of the loss, and nothing at inference."""

    colour = "#009E73"
    controls = {"self": {"teacher": "self"}, "noise": {"h": "noise"}}

    @classmethod
    def encode(cls, config: ELECConfig, run: Run) -> dict[str, Any]:
        """The language model's vectors of the rows' texts."""
        from .stages import encode

        encode(config, run)
        return {}

    @classmethod
    def prepare(cls, config: ELECConfig, run: Run) -> dict[str, Any]:
        """Everything up to the trained teacher, each part cached."""
        if not config.is_on:
            logging.warning("ELEC is off: alpha and beta are both 0")
            return {}
        if config.schedule == "joint" and config.warmup_epochs >= run.params["epochs"]:
            raise UserError(
                f"warmup_epochs {config.warmup_epochs} leaves nothing of {run.params['epochs']} epochs: the vanilla "
                "network would never listen to its teacher; lower it, or raise epochs"
            )
        from .stages import prepare_teacher

        run.prepared = prepare_teacher(config, run)
        return {"teacher_width": run.prepared.width or None}

    @classmethod
    def self_check(cls, trial: Trial) -> Sequence[str]:
        """A gain network with random vectors trains, and a student learns from it."""
        gain = trial.build(gain_class(trial.cls, "top"), vector_width=TRIAL_WIDTH, inject="top")
        trial.trained(gain, [_with_vectors(batch) for batch in trial.batches()])
        student = trial.enhanced(cls, alpha=0.5, beta=0.1)
        student.enhancement.learn_from(Teacher(gain, add=_with_vectors, taps=tap_keys(trial.settings)))
        trial.trained(student)
        if torch.equal(trial.predictions(trial.trained(trial.build())), trial.predictions(student)):
            raise UserError("the student trains as if it had no teacher")
        return [] if student.enhancement.compares_representations else ["the representation loss"]

    def on_train_begin(self, run: Run) -> None:
        if run.prepared is not None:
            self.learn_from(run.prepared)

    def on_train_end(self, run: Run) -> None:
        teacher = self.teacher
        super().on_train_end(run)
        if isinstance(teacher, JointTeacher):  # a staged one has been measured when it was trained
            from fuxictr_llm.data.loader import make_loaders
            from fuxictr_llm.data.slices import FrequencySlices
            from fuxictr_llm.training.networks import measure

            name = "twin" if self.config.teacher == "self" else "gain"
            _, valid_rows = make_loaders(run.feature_map, run.params, "train")
            slices = FrequencySlices.from_run(run)
            run.networks[name] = measure(run, teacher.model, valid_rows, teacher.batch_for_model, slices)


def _with_vectors(batch: Batch) -> Batch:
    """The batch with a vector for each row, that depends on nothing but the row's first column."""
    first = next(iter(columns_of(batch).values()))
    vectors = torch.sin(first.float().view(-1, 1) * torch.arange(1.0, TRIAL_WIDTH + 1))
    return with_columns(batch, {VECTOR: vectors})
