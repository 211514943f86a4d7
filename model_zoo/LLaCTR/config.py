"""LLaCTR's config keys."""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fuxictr_llm.common.checks import STRICT
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.language_models import LanguageModelConfig, LoraKeys

# Sizes of SSFT: `paper` is LLaCTR's published setting (Llama-3-8B on a GPU), `demo` fits two CPU cores.
PRESETS: dict[str, dict[str, Any]] = {
    "demo": {
        "ssft_values_per_field": 24,
        "ssft_epochs": 4,
        "ssft_batch_size": 16,
        "ssft_learning_rate": 2e-3,
        "ssft_warmup_steps": 5,
        "ssft_tau": 0.05,
    },
    "paper": {
        "ssft_values_per_field": 1000,
        "ssft_epochs": 5,
        "ssft_batch_size": 128,
        "ssft_learning_rate": 1e-4,
        "ssft_warmup_steps": 20,
        "ssft_tau": 0.02,
    },
}


@dataclass(config=STRICT, kw_only=True)
class FieldVectorsConfig(LanguageModelConfig, LoraKeys):
    """How the K field vectors `[K, D_llm]` are made.

    Attributes:
        field_vectors: `llm` (tuned), `llm_untuned`, or a placebo: `random` (Gaussian, norms of the tuned ones),
            `shuffled` (the tuned ones, each at another field), `identity` (one-hot fields); or a file with a
            row per field (.safetensors, .npy, .pt).
        llm_max_value_tokens: longer values are cut; the rest of a prompt never is.
        llm_centre: the mean of the K vectors is taken off each: last-token vectors are crowded around it.
        ssft_preset: `demo` or `paper`: gives the values of the six keys below it that are null.
        ssft_values_per_field: at most so many train values of a field become prompts.
        ssft_epochs: passes over the prompts; 0 leaves the language model untuned.
        ssft_batch_size: prompts a step.
        ssft_learning_rate: AdamW's, decayed linearly.
        ssft_warmup_steps: steps of linear warm-up.
        ssft_tau: temperature of the contrastive loss.
        ssft_contrastive, ssft_generative: weights of the two objectives; one may be 0. The generative one needs a
            causal language model.
        ssft_held_out: share of the prompts that is not tuned on but measures how well fields are identified; the best
            epoch's weights are kept.
        ssft_patience: so many epochs in a row without a better accuracy end the tuning; null: all epochs are run.
        ssft_seed: seed of sampling and tuning; apart from the run's own seed, so that runs share vectors.
    """

    of_language_model: ClassVar[bool] = True  # a language model's work depends on its keys

    field_vectors: Annotated[str, Field(min_length=1)] = "llm"
    llm_max_value_tokens: Annotated[int, Field(ge=1)] = 32
    llm_centre: bool = False
    ssft_preset: Literal["demo", "paper"] = "demo"
    ssft_values_per_field: Annotated[int, Field(ge=1)] | None = None
    ssft_epochs: Annotated[int, Field(ge=0)] | None = None
    ssft_batch_size: Annotated[int, Field(ge=1)] | None = None
    ssft_learning_rate: Annotated[float, Field(gt=0)] | None = None
    ssft_warmup_steps: Annotated[int, Field(ge=0)] | None = None
    ssft_tau: Annotated[float, Field(gt=0)] | None = None
    ssft_contrastive: Annotated[float, Field(ge=0)] = 1.0
    ssft_generative: Annotated[float, Field(ge=0)] = 0.0
    ssft_held_out: Annotated[float, Field(ge=0, lt=1)] = 0.2
    ssft_patience: Annotated[int, Field(ge=1)] | None = 2
    ssft_seed: Annotated[int, Field(ge=0, lt=2**32)] = 2024

    def filled(self) -> "FieldVectorsConfig":
        """The same settings; the keys that are null get the values of `ssft_preset`.

        Raises:
            UserError: SSFT has no objective.
        """
        preset = PRESETS[self.ssft_preset]
        filled = replace(self, **{key: value for key, value in preset.items() if getattr(self, key) is None})
        if filled.ssft_epochs and not (filled.ssft_contrastive or filled.ssft_generative):
            raise UserError("ssft_contrastive and ssft_generative are both 0; set ssft_epochs: 0 to leave SSFT out")
        return filled


# The backbones on which the published code's FIE is one scalar.
SCALAR_IN_REFERENCE = ("FinalMLP", "WuKong")


@dataclass(config=STRICT, kw_only=True)
class LLaCTRConfig(FieldVectorsConfig):
    """What LLaCTR adds to training, on top of how its field vectors are made.

    Attributes:
        variant: `corrected`, or `reference`: what the published code does. It gives the values of the four keys
            below that are null.
        train_maps: whether W, b, A, a are trained. In the published code they never are: its optimizer is made
            before they are. Their gradients are then never cleared either, and count in the norm clipping.
        fie_form: `pairwise` weights the pairs of fields; `scalar` adds the sum of the weights to every row's logit,
            as the published FinalMLP and WuKong do (it cannot change the AUC).
        fie_init: A and a start as `identity` and zero, or `random` as torch's Linear does.
        lambda_fre: weight of the feature representation enhancement in the loss; 0 leaves it out.
        lambda_fie: weight of the feature interaction enhancement in the logit; 0 leaves it out.
        fie_map: `full` maps all P pair cosines to all P pair weights (P x P parameters), `diagonal` each to its own;
            `bounded` is `full` with weights that stay within `fie_bound` of the cosines. `corrected` has `bounded`,
            `reference` has `full`.
        fie_bound: how far a weight of the map `bounded` may be from its pair's cosine.
    """

    variant: Literal["corrected", "reference"] = "corrected"
    train_maps: bool | None = None
    fie_form: Literal["pairwise", "scalar"] | None = None
    fie_init: Literal["identity", "random"] | None = None
    lambda_fre: Annotated[float, Field(ge=0)] = 0.05
    lambda_fie: Annotated[float, Field(ge=0)] = 0.1
    fie_map: Literal["bounded", "full", "diagonal"] | None = None
    fie_bound: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0

    def for_backbone(self, backbone: str) -> "LLaCTRConfig":
        """The same settings; the keys that are null get the values of `variant` on this backbone."""
        reference = self.variant == "reference"
        scalar = reference and backbone in SCALAR_IN_REFERENCE
        return replace(
            self,
            train_maps=not reference if self.train_maps is None else self.train_maps,
            fie_form=self.fie_form or ("scalar" if scalar else "pairwise"),
            fie_init=self.fie_init or ("random" if reference else "identity"),
            fie_map=self.fie_map or ("full" if reference else "bounded"),
        )

    @property
    def bound(self) -> float | None:
        """How far a pair's weight may be from its cosine, of the settings for a backbone; None: unbounded."""
        return self.fie_bound if self.fie_map == "bounded" else None

    @property
    def is_on(self) -> bool:
        return self.lambda_fre > 0 or self.lambda_fie > 0
