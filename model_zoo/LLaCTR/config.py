"""LLaCTR's config keys."""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fuxictr_llm.checks import STRICT
from fuxictr_llm.semantics.config import FieldVectorsConfig

# The backbones on which the published code's FIE is one scalar.
SCALAR_IN_REFERENCE = ("FinalMLP", "WuKong")


@dataclass(config=STRICT, kw_only=True)
class LLaCTRConfig(FieldVectorsConfig):
    """What LLaCTR adds to training, on top of how its field vectors are made.

    Attributes:
        variant: `corrected`, or `reference`: what the published code does. It decides about the three keys below
            that are null.
        train_maps: whether W, b, A, a are trained. In the published code they never are: its optimizer is made
            before they are. Their gradients are then never cleared either, and count in the norm clipping.
        fie_form: `pairwise` weights the pairs of fields; `scalar` adds the sum of the weights to every row's logit,
            as the published FinalMLP and WuKong do (it cannot change the AUC).
        fie_init: A and a start as `identity` and zero, or `random` as torch's Linear does.
        lambda_fre: weight of the feature representation enhancement in the loss; 0 leaves it out.
        lambda_fie: weight of the feature interaction enhancement in the logit; 0 leaves it out.
        fie_map: `full` maps all P pair cosines to all P pair weights (P x P parameters), `diagonal` each to its own.
    """

    variant: Literal["corrected", "reference"] = "corrected"
    train_maps: bool | None = None
    fie_form: Literal["pairwise", "scalar"] | None = None
    fie_init: Literal["identity", "random"] | None = None
    lambda_fre: Annotated[float, Field(ge=0)] = 0.05
    lambda_fie: Annotated[float, Field(ge=0)] = 0.1
    fie_map: Literal["full", "diagonal"] = "full"

    def for_backbone(self, backbone: str) -> "LLaCTRConfig":
        """The same settings with what `variant` decides filled in."""
        reference = self.variant == "reference"
        scalar = reference and backbone in SCALAR_IN_REFERENCE
        return replace(
            self,
            train_maps=not reference if self.train_maps is None else self.train_maps,
            fie_form=self.fie_form or ("scalar" if scalar else "pairwise"),
            fie_init=self.fie_init or ("random" if reference else "identity"),
        )

    @property
    def is_on(self) -> bool:
        return self.lambda_fre > 0 or self.lambda_fie > 0
