"""ELEC's config keys."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fuxictr_llm.common.checks import STRICT
from fuxictr_llm.common.errors import UserError, unknown
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
HEADS = 5  # that make h where no number is named


@dataclass(config=STRICT, kw_only=True)
class ELECConfig(RowTextsConfig, ClickTuningConfig, DistillationConfig):
    """ELEC, on top of how rows become texts and vectors, how a language model is tuned, and how is distilled.

    Attributes:
        teacher: `gain`; or a control: `self` (the plain backbone teaches its twin) or `shuffled` (the gain network's
            answers handed round over the rows of a batch); or a trained run, or its export: no language model is asked.
        tuning: `frozen` leaves the language model as it is, `lora` tunes it on clicks first.
        inject_vector: what the gain network gets of a row: `joint`, the row's vector s, and it learns its own
            transformation of s on the clicks; `s` alone; or `h`, the transformation of a text head that was trained on
            the clicks before.
        h: `llm`, or a placebo: `noise` (a Gaussian vector of the same norm for every text) or `shuffled` (the vectors
            handed round over a unit's texts).
        s_dim: principal components of a unit's vectors that make s.
        text_history: what the user did before, told by the mean of the items' vectors s and its cosine with the row's
            own item. `{column: item_history}`: a sequence of item ids, which shares the embedding of the item's id.
            `{of: item_id, liked: label}`: derived, the train rows of the user with that label, never the row itself: a
            train row gets those before it (`rows: past`, the default of splits in time), or those of other folds
            (`rows: folds`). `user`: the user's id, where the field config has no entity of that name. null: none.
        h_dim: width of the transformation, D_h.
        h_hidden: width of its hidden layer.
        h_dropout: dropout on its input (of the gain network's own) and on its hidden layer.
        h_decay: weight decay of all that a gain network has more than its backbone.
        h_crossfit: of `inject_vector: h`. K >= 2: a row gets its h from one of K heads, that has not seen the clicks of
            rows with its text; the heads' spaces are aligned to one that has seen all. 0: one head. null: 5 heads.
        inject: where the gain network gets it: `top`, a residual block on the representation in front of the logit
            layer; `logit`, a linear term of the logit; `input`, one more column of the features. Backbones without a
            representation take `logit` for `top`.
        gain_backbone: `fixed`: the trained plain backbone, and only what the gain network adds is trained; `tuned`: all
            is trained on from there; `fresh`: all from random weights. null: `fixed`, where it can be: `input` changes
            the backbone, and a joint teacher is not trained before.
    """

    teacher: Annotated[str, Field(min_length=1)] = "gain"
    tuning: Literal["frozen", "lora"] = "frozen"
    inject_vector: Literal["joint", "h", "s"] = "joint"
    h: Literal["llm", "noise", "shuffled"] = "llm"
    s_dim: Annotated[int, Field(ge=1)] = 32
    text_history: dict[str, str] | None = None
    h_dim: Annotated[int, Field(ge=1)] = 32
    h_hidden: Annotated[int, Field(ge=1)] = 64
    h_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    h_decay: Annotated[float, Field(ge=0)] = 1e-4
    h_crossfit: Annotated[int, Field(ge=0)] | None = None
    inject: Literal["top", "input", "logit"] = "top"
    gain_backbone: Literal["fixed", "tuned", "fresh"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_history is not None:
            self._check_history(self.text_history)
        if self.h_crossfit == 1:
            raise UserError("h_crossfit 1: a head must leave some rows out; take 0, or 2 and more heads")
        if self.h_crossfit and self.inject_vector != "h":
            raise UserError(
                f"h_crossfit has no effect on inject_vector: {self.inject_vector}, for which no head is asked; set "
                "h_crossfit: null"
            )
        if self.h != "llm" and self.teacher not in ("gain", "shuffled"):
            raise UserError(f"h: {self.h} has no effect on teacher: {self.teacher}, which sees no vectors; set h: llm")
        if self.gain_backbone in ("fixed", "tuned") and (self.inject == "input" or self.schedule == "joint"):
            key, value = ("inject", "input") if self.inject == "input" else ("schedule", "joint")
            raise UserError(
                f"gain_backbone: {self.gain_backbone}: a gain network with {key}: {value} cannot start from the "
                "trained plain backbone; set gain_backbone: fresh"
            )
        if self.teacher == "shuffled" and self.schedule == "joint":
            raise UserError(
                "teacher: shuffled is a trained teacher, and schedule: joint trains its own; set schedule: staged"
            )

    def _check_history(self, asked: dict[str, str]) -> None:
        known = ("column",) if "column" in asked else ("of", "liked", "user", "rows")
        for key in asked:
            if key not in known:
                raise unknown("key", key, known, "text_history")
        for key in known[:2]:
            if not asked.get(key):
                raise UserError(
                    f"text_history lacks {key!r}; it is {{column: a sequence of item ids}}, or {{of: the item's id, "
                    "liked: the label}"
                )
        if asked.get("rows", "past") not in ("past", "folds"):
            raise unknown("value", asked["rows"], ("past", "folds"), "rows of text_history")
        if self.text_units == "row":
            raise UserError("text_history needs texts of items: set text_units: entity, or text_history: null")

    @property
    def folds(self) -> int:
        """How many heads make h, besides the one that has seen all rows."""
        crossfit = HEADS if self.h_crossfit is None else self.h_crossfit
        return crossfit if self.inject_vector == "h" else 0

    @property
    def start(self) -> str:
        """`gain_backbone`, with null decided."""
        can_be_fixed = self.inject != "input" and self.schedule == "staged"
        return self.gain_backbone or ("fixed" if can_be_fixed else "fresh")

    @property
    def is_on(self) -> bool:
        return self.alpha > 0 or self.beta > 0
