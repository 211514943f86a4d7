"""LLaCTR's config keys."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fuxictr_llm.checks import STRICT
from fuxictr_llm.semantics.config import FieldVectorsConfig


@dataclass(config=STRICT, kw_only=True)
class LLaCTRConfig(FieldVectorsConfig):
    """What LLaCTR adds to training, on top of how its field vectors are made.

    Attributes:
        variant: `corrected` trains every parameter and weights pairs on every backbone.
        lambda_fre: weight of the feature representation enhancement in the loss; 0 leaves it out.
        lambda_fie: weight of the feature interaction enhancement in the logit; 0 leaves it out.
        fie_map: `full` maps all P pair cosines to all P pair weights (P x P parameters), `diagonal` each to its own.
    """

    variant: Literal["corrected"] = "corrected"
    lambda_fre: Annotated[float, Field(ge=0)] = 0.05
    lambda_fie: Annotated[float, Field(ge=0)] = 0.1
    fie_map: Literal["full", "diagonal"] = "full"

    @property
    def is_on(self) -> bool:
        return self.lambda_fre > 0 or self.lambda_fie > 0
