"""The config keys of everything that a language model computes, and of field vectors."""

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fuxictr_llm.checks import STRICT
from fuxictr_llm.errors import UserError

# Sizes of SSFT: `paper` is LLaCTR's published setting (Llama-3-8B on a GPU), `demo` fits two CPU cores.
PRESETS = {
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
class LanguageModelConfig:
    """Which language model is asked, and how it makes the vector of a text.

    Attributes:
        language_model: a named model (`python run_expid.py --list`), a Hugging Face id or a folder.
        llm_dtype: what the language model computes in. auto: bfloat16 on a GPU, and on a CPU that has instructions for
            it; float32 on others, where bfloat16 can be fifty times slower.
        llm_pooling: which hidden states make the vector of a text. auto: of fields the last token (causal model) or the
            mean (encoder), of values the mean.
        control_seed: seed of the placebos `random` and `shuffled`.
    """

    language_model: Annotated[str, Field(min_length=1)] = "SmolLM2-135M-Instruct"
    llm_dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    llm_pooling: Literal["auto", "last", "mean"] = "auto"
    control_seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    def dtype_on(self, gpu: int) -> str:
        """`llm_dtype` with `auto` decided, for the GPU of that index or, at -1, the CPU."""
        if self.llm_dtype != "auto":
            return self.llm_dtype
        import torch

        able = getattr(torch.cpu, "get_capabilities", dict)()
        return "bfloat16" if gpu >= 0 or able.get("avx512_bf16") or able.get("amx_bf16") else "float32"


@dataclass(config=STRICT, kw_only=True)
class LoraKeys:
    """What a language model is tuned with, for whatever purpose.

    Attributes:
        lora_rank, lora_alpha, lora_dropout: LoRA's; the defaults are those of LLaCTR's paper.
        lora_targets: names of the tuned projections; null: peft's choice for the model (Llama: q_proj, v_proj).
    """

    lora_rank: Annotated[int, Field(ge=1)] = 8
    lora_alpha: Annotated[int, Field(ge=1)] = 16
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    lora_targets: list[str] | None = None


@dataclass(config=STRICT, kw_only=True)
class FieldVectorsConfig(LanguageModelConfig, LoraKeys):
    """How the K field vectors `[K, D_llm]` are made.

    Attributes:
        field_vectors: `llm` (tuned), `llm_untuned`, or a placebo: `random` (Gaussian, norms of the tuned ones),
            `shuffled` (the tuned ones handed round over the fields), `identity` (one-hot fields); or a file with a
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
        ssft_held_out: share of the prompts that only measures how well fields are identified; the epoch that does it
            best is kept.
        ssft_patience: so many epochs in a row without a better accuracy end the tuning; null: all epochs are run.
        ssft_seed: seed of sampling and tuning; apart from the run's own seed, so that runs share vectors.
    """

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
        """The same settings with what `ssft_preset` decides filled in.

        Raises:
            UserError: SSFT has no objective.
        """
        preset = PRESETS[self.ssft_preset]
        filled = replace(self, **{key: value for key, value in preset.items() if getattr(self, key) is None})
        if filled.ssft_epochs and not (filled.ssft_contrastive or filled.ssft_generative):
            raise UserError("ssft_contrastive and ssft_generative are both 0; set ssft_epochs: 0 to leave SSFT out")
        return filled
