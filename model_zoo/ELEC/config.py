"""ELEC's config keys."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fuxictr_llm.common.checks import STRICT
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.language_models import LoraKeys, RowTextsConfig
from fuxictr_llm.distillation import DistillationConfig


@dataclass(config=STRICT, kw_only=True)
class ClickTuningConfig(LoraKeys):
    """How a language model is tuned on clicks (`tuning: lora`); the defaults fit two CPU cores and a small model.

    Of several labels, the first one is the click.

    Attributes:
        click_rows: at most so many train rows, drawn at random, are learnt from.
        click_valid_rows: at most so many validation rows only measure the AUC; the epoch with the best is kept.
        click_epochs: passes over the rows.
        click_batch_size: rows a step.
        click_learning_rate: AdamW's, of LoRA and of the click head, decayed linearly.
        click_warmup_steps: steps of linear warm-up.
        click_patience: so many epochs in a row without a better AUC end the tuning; null: all epochs are run.
        click_seed: seed of drawing and tuning; apart from the run's own seed, so that runs share a tuned model.
    """

    of_language_model: ClassVar[bool] = True  # a language model's work depends on its keys

    click_rows: Annotated[int, Field(ge=1)] = 2000
    click_valid_rows: Annotated[int, Field(ge=1)] = 1000
    click_epochs: Annotated[int, Field(ge=1)] = 2
    click_batch_size: Annotated[int, Field(ge=1)] = 16
    click_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    click_warmup_steps: Annotated[int, Field(ge=0)] = 10
    click_patience: Annotated[int, Field(ge=1)] | None = 1
    click_seed: Annotated[int, Field(ge=0, lt=2**32)] = 2024


TEACHERS = ("gain", "self", "shuffled")


@dataclass(config=STRICT, kw_only=True)
class ELECConfig(RowTextsConfig, ClickTuningConfig, DistillationConfig):
    """ELEC, on top of how rows become texts and vectors, how a language model is tuned, and how is distilled.

    Attributes:
        teacher: `gain`; or a control: `self` (the plain backbone teaches its twin) or `shuffled` (the gain network's
            answers handed round over the rows of a batch); or a trained run, or its export: no language model is asked.
        tuning: `frozen` leaves the language model as it is, `lora` tunes it on clicks first.
        inject_vector: what the gain network gets of a row: `h`, the text head's transformation of the row's vector s,
            or `s` itself, reduced by a PCA of the train rows and scaled.
        h: `llm`, or the placebo `noise`: Gaussian vectors of the same norms.
        h_dim: width of what is injected, D_h.
        h_hidden: width of the text head's hidden layer.
        h_dropout: dropout in the text head.
        h_crossfit: 0: one text head; K >= 2: a row gets its h from one of K heads, that has not seen the clicks of rows
            with its text; the heads' spaces are aligned to one that has seen all.
        inject: where the gain network gets it: `top`, mixed into the representation in front of the logit layer;
            `logit`, a linear term of the logit; `input`, one more column of the features. Backbones without a
            representation take `logit` for `top`.
    """

    teacher: Annotated[str, Field(min_length=1)] = "gain"
    tuning: Literal["frozen", "lora"] = "frozen"
    inject_vector: Literal["h", "s"] = "h"
    h: Literal["llm", "noise"] = "llm"
    h_dim: Annotated[int, Field(ge=1)] = 32
    h_hidden: Annotated[int, Field(ge=1)] = 128
    h_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    h_crossfit: Annotated[int, Field(ge=0)] = 0
    inject: Literal["top", "input", "logit"] = "top"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.h_crossfit == 1:
            raise UserError("h_crossfit 1: a head must leave some rows out; take 0, or 2 and more heads")
        if self.h_crossfit and self.inject_vector == "s":
            raise UserError(
                "h_crossfit has no effect on inject_vector: s, for which no head is asked; set h_crossfit: 0"
            )
        if self.h == "noise" and self.teacher not in ("gain", "shuffled"):
            raise UserError(f"h: noise has no effect on teacher: {self.teacher}, which sees no vectors; set h: llm")
        if self.teacher == "shuffled" and self.schedule == "joint":
            raise UserError(
                "teacher: shuffled is a trained teacher, and schedule: joint trains its own; set schedule: staged"
            )

    @property
    def is_on(self) -> bool:
        return self.alpha > 0 or self.beta > 0
