"""The config keys of tuning a language model on clicks."""

from typing import Annotated

from pydantic import Field
from pydantic.dataclasses import dataclass

from fuxictr_llm.checks import STRICT
from fuxictr_llm.semantics.config import LoraKeys


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

    click_rows: Annotated[int, Field(ge=1)] = 2000
    click_valid_rows: Annotated[int, Field(ge=1)] = 1000
    click_epochs: Annotated[int, Field(ge=1)] = 2
    click_batch_size: Annotated[int, Field(ge=1)] = 16
    click_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    click_warmup_steps: Annotated[int, Field(ge=0)] = 10
    click_patience: Annotated[int, Field(ge=1)] | None = 1
    click_seed: Annotated[int, Field(ge=0, lt=2**32)] = 2024
