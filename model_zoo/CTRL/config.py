"""CTRL's config keys."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fuxictr_llm.common.checks import STRICT
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.language_models import LoraKeys, RowTextsConfig


@dataclass(config=STRICT, kw_only=True)
class CTRLConfig(RowTextsConfig, LoraKeys):
    """How the backbone is aligned with the rows' texts, on top of how these are made and encoded.

    Attributes:
        texts: `llm`; or a control: `shuffled` (the vectors handed round over a unit's texts) or `noise` (a Gaussian
            vector, drawn anew for every row of every batch).
        tuning: `frozen` leaves the language model as it is; `lora` trains it in stage 1 with the backbone, at the same
            learning rate.
        align_epochs: passes over the train rows before clicks are learnt; 0 leaves the alignment out.
        align_batch_size: N, rows that are told apart in a step; its memory and time grow as N^2 M^2.
        align_learning_rate: AdamW's, after the warm-up.
        align_warmup: share of the steps in which the learning rate rises from nothing.
        align_width: d, the width of both sides.
        sub_spaces: M; 1: one dot product.
        align_normalize: whether the vectors of the sub-spaces have length 1.
        align_tau: temperature.
        mask_equal: whether other rows of a batch with the same texts are left out of the negatives.
    """

    texts: Literal["llm", "shuffled", "noise"] = "llm"
    tuning: Literal["frozen", "lora"] = "frozen"
    align_epochs: Annotated[int, Field(ge=0)] = 3
    align_batch_size: Annotated[int, Field(ge=2)] = 1024
    align_learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    align_warmup: Annotated[float, Field(ge=0, le=1)] = 0.1
    align_width: Annotated[int, Field(ge=1)] = 128
    sub_spaces: Annotated[int, Field(ge=1, le=256)] = 3  # their numbers are kept in a byte
    align_normalize: bool = False
    align_tau: Annotated[float, Field(gt=0)] = 0.7
    mask_equal: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tuning == "lora" and self.text_vectors:
            raise UserError(
                "text_vectors are frozen, and tuning: lora trains the language model; leave one of them out"
            )
        if self.tuning == "lora" and self.texts == "noise":
            raise UserError("texts: noise asks no language model, so there is nothing to tune; set tuning: frozen")
