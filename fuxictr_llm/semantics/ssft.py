"""SSFT, self-supervised field-feature fine-tuning: a language model learns to say which field a value is of.

"Field Matters: A Lightweight LLM-enhanced Method for CTR Prediction", arXiv 2505.14057, the contrastive
objective. No click label is used.

Shape symbols: `K` fields, `N` prompts of a step, `D_llm` width of the language model.
"""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import ProgressCallback, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from fuxictr_llm.errors import UserError
from fuxictr_llm.files import read_json
from fuxictr_llm.semantics.catalog import FieldCatalog
from fuxictr_llm.semantics.config import FieldVectorsConfig
from fuxictr_llm.semantics.language_model import LanguageModel
from fuxictr_llm.semantics.prompts import Prompt, common_prefix

SAVE_STEPS = 10


def contrastive_loss(prompts: Tensor, fields: Tensor, answers: Tensor, tau: float) -> Tensor:
    """`mean -log exp(cos(En(P), En(F_k)) / tau) / sum_l exp(cos(En(P), En(F_l)) / tau)`.

    Args:
        prompts: `[N, D_llm]`.
        fields: `[K, D_llm]`; the negatives are the other fields.
        answers: `[N]`, the index k of each prompt's field.
    """
    return functional.cross_entropy(cosines(prompts, fields) / tau, answers)


def cosines(left: Tensor, right: Tensor) -> Tensor:
    """`[N, D], [K, D] -> [N, K]`."""
    return functional.normalize(left, dim=-1) @ functional.normalize(right, dim=-1).T


def tune(
    language_model: LanguageModel,
    catalog: FieldCatalog,
    tuning: Sequence[Prompt],
    held_out: Sequence[Prompt],
    config: FieldVectorsConfig,
    checkpoints: Path,
) -> dict[str, Any]:
    """Tune the language model in place with LoRA; how well it names the field of held-out values before and after.

    Args:
        checkpoints: a folder for this tuning alone. One that was killed goes on from the last checkpoint in it
            (weights, optimizer, schedule, random numbers, data position) and ends with the same weights as one
            that was not; it is removed at the end.

    Raises:
        UserError: there are no prompts, or LoRA finds nothing to tune.
    """
    if not tuning:
        raise UserError("no field has values to tune the language model on; set ssft_epochs: 0 to leave it untuned")
    set_seed(config.ssft_seed)
    texts = _PromptTexts(language_model, catalog, config.llm_max_value_tokens)
    before = accuracy(language_model, texts, held_out)
    wrapped = _with_lora(language_model.model, config)
    language_model.model = wrapped
    trainer = _Contrastive(
        model=wrapped,
        args=_arguments(checkpoints, config, on_gpu=next(wrapped.parameters()).is_cuda),
        train_dataset=list(tuning),
        data_collator=texts.collate,
        language_model=language_model,
        texts=texts,
        tau=config.ssft_tau,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(_Progress)
    loss = trainer.train(resume_from_checkpoint=_last_whole_checkpoint(checkpoints)).training_loss
    shutil.rmtree(checkpoints, ignore_errors=True)
    after = accuracy(language_model, texts, held_out)
    logging.info("SSFT: field identification on %d held-out values %s -> %s", len(held_out), before, after)
    return {
        "prompts": len(tuning),
        "held_out": len(held_out),
        "mean_loss": round(loss, 4),
        "accuracy_before": before,
        "accuracy_after": after,
        "tuned_parameters": sum(p.numel() for p in wrapped.parameters() if p.requires_grad),
    }


@torch.no_grad()
def accuracy(language_model: LanguageModel, texts: "_PromptTexts", prompts: Sequence[Prompt]) -> float | None:
    """Share of prompts whose nearest field vector is the right one; None without prompts."""
    if not prompts:
        return None
    language_model.model.eval()
    fields = language_model.embed(texts.fields)
    right = 0
    for start in range(0, len(prompts), 32):
        batch = texts.collate(prompts[start : start + 32])
        answers = batch.pop("answers")
        right += (cosines(language_model.embed(batch), fields).argmax(dim=-1).cpu() == answers).sum().item()
    return round(right / len(prompts), 4)


class _PromptTexts:
    """Prompts and field texts as token batches. A long value is cut; what stands before it never is."""

    def __init__(self, language_model: LanguageModel, catalog: FieldCatalog, max_value_tokens: int):
        self.language_model = language_model
        self.max_value_tokens = max_value_tokens
        self.prefix = language_model.tokens(common_prefix(catalog))
        field_rows = [language_model.framed(language_model.tokens(field.text)) for field in catalog.fields]
        self.fields = language_model.batch(field_rows)

    def collate(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        model = self.language_model
        values = [model.tokens(f" {prompt.value}", self.max_value_tokens) for prompt in prompts]
        batch = model.batch([model.framed(self.prefix + value) for value in values])
        return {**batch, "answers": torch.tensor([prompt.field for prompt in prompts])}


class _Contrastive(Trainer):
    """Trainer whose loss compares a batch of prompts with the K fields, encoded with gradient every step."""

    def __init__(self, *args: Any, language_model: LanguageModel, texts: _PromptTexts, tau: float, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.language_model, self.texts, self.tau = language_model, texts, tau

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        answers = inputs.pop("answers")
        prompts = self.language_model.embed(inputs, model)
        fields = self.language_model.embed(self.texts.fields, model)
        return contrastive_loss(prompts, fields, answers, self.tau)


class _Progress(ProgressCallback):
    """A progress bar that leaves the losses to the run's log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            logging.info("SSFT step %d of %d: loss %.4f", state.global_step, state.max_steps, float(logs["loss"]))


def _with_lora(model: nn.Module, config: FieldVectorsConfig) -> nn.Module:
    lora = LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=config.lora_targets,
        task_type="FEATURE_EXTRACTION",
    )
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        raise UserError(f"LoRA finds nothing to tune ({error}); name projections with lora_targets") from error


def _last_whole_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint in a folder; those that a kill left half written are removed."""
    while folder.is_dir() and (last := get_last_checkpoint(str(folder))):
        # The Trainer writes its state last.
        if read_json(Path(last) / "trainer_state.json"):
            logging.info("SSFT goes on from %s", last)
            return last
        shutil.rmtree(last)
    return None


def _arguments(folder: Path, config: FieldVectorsConfig, on_gpu: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.ssft_epochs,
        per_device_train_batch_size=config.ssft_batch_size,
        learning_rate=config.ssft_learning_rate,
        warmup_steps=config.ssft_warmup_steps,
        seed=config.ssft_seed,
        use_cpu=not on_gpu,
        save_strategy="steps",
        save_steps=SAVE_STEPS,
        save_total_limit=2,
        logging_steps=10,
        report_to="none",
        remove_unused_columns=False,
    )
