"""SSFT, self-supervised field-feature fine-tuning: a language model learns to say which field a value is of.

"Field Matters: A Lightweight LLM-enhanced Method for CTR Prediction", arXiv 2505.14057, the contrastive and
the generative objective and their weighted sum. No click label is used.

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
from fuxictr_llm.semantics.language_model import LanguageModel, pool
from fuxictr_llm.semantics.prompts import ANSWER, Prompt, common_prefix

SAVE_STEPS = 10
# What torch's cross entropy leaves out.
IGNORED = -100


def contrastive_loss(prompts: Tensor, fields: Tensor, answers: Tensor, tau: float) -> Tensor:
    """`mean -log exp(cos(En(P), En(F_k)) / tau) / sum_l exp(cos(En(P), En(F_l)) / tau)`.

    Args:
        prompts: `[N, D_llm]`.
        fields: `[K, D_llm]`; the negatives are the other fields.
        answers: `[N]`, the index k of each prompt's field.
    """
    return functional.cross_entropy(cosines(prompts, fields) / tau, answers)


def generative_loss(hidden: Tensor, answer_tokens: Tensor, lm_head: nn.Module) -> Tensor:
    """`mean -log P_LLM(F_k | P)`, the log-probability summed over the tokens of the field's words.

    Args:
        hidden: `[N, L, D_llm]`, the states of prompt and answer.
        answer_tokens: `[N, L]`, the token ids of the answers in their places, -100 elsewhere.
    """
    targets = answer_tokens[:, 1:]
    counted = targets != IGNORED
    logits = lm_head(hidden[:, :-1][counted])  # only where an answer's token is predicted
    return functional.cross_entropy(logits.float(), targets[counted], reduction="sum") / len(hidden)


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
            that was not. Whoever keeps the result removes it.

    Raises:
        UserError: there are no prompts, or LoRA finds nothing to tune.
    """
    if not tuning:
        raise UserError("no field has values to tune the language model on; set ssft_epochs: 0 to leave it untuned")
    set_seed(config.ssft_seed)
    if config.ssft_generative and language_model.lm_head is None:
        raise UserError(f"ssft_generative needs a causal language model; {config.language_model!r} is an encoder")
    texts = _PromptTexts(language_model, catalog, config.llm_max_value_tokens)
    _check_length(language_model, texts, config)
    before = accuracy(language_model, texts, held_out)
    wrapped = _with_lora(language_model.model, config)
    language_model.model = wrapped
    arguments = _arguments(checkpoints, config, on_gpu=next(wrapped.parameters()).is_cuda)
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs would silently multiply the batch; torchrun is for them
    trainer = _FieldIdentification(
        model=wrapped,
        args=arguments,
        train_dataset=list(tuning),
        data_collator=texts.collate_with_answers if config.ssft_generative else texts.collate,
        language_model=language_model,
        texts=texts,
        config=config,
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(_Progress)
    loss = trainer.train(resume_from_checkpoint=_last_whole_checkpoint(checkpoints)).training_loss
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
        self.intro = language_model.tokens(ANSWER)
        self.answers = [language_model.tokens(f" {field.text}") for field in catalog.fields]

    def collate(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Prompts alone, and the index of the field of each."""
        batch = self.language_model.batch([self.language_model.framed(row) for row in self._rows(prompts)])
        return {**batch, "answers": torch.tensor([prompt.field for prompt in prompts])}

    def collate_with_answers(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        """Prompts followed by their answers; `prompt_mask` covers the prompts, `answer_tokens` the answers."""
        model = self.language_model
        questions = [[*model.before, *row] for row in self._rows(prompts)]
        answers = [self.answers[prompt.field] for prompt in prompts]
        batch = model.batch([q + self.intro + a for q, a in zip(questions, answers, strict=True)])
        batch["prompt_mask"] = torch.zeros_like(batch["attention_mask"])
        batch["answer_tokens"] = torch.full_like(batch["input_ids"], IGNORED)
        for row, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            batch["prompt_mask"][row, : len(question)] = 1
            start = len(question) + len(self.intro)
            batch["answer_tokens"][row, start : start + len(answer)] = torch.tensor(answer)
        return {**batch, "answers": torch.tensor([prompt.field for prompt in prompts])}

    def _rows(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        tokens, limit = self.language_model.tokens, self.max_value_tokens
        return [self.prefix + tokens(f" {prompt.value}", limit) for prompt in prompts]


class _FieldIdentification(Trainer):
    """Trainer with SSFT's loss; the K field texts are encoded with gradient every step."""

    def __init__(
        self, *args: Any, language_model: LanguageModel, texts: _PromptTexts, config: FieldVectorsConfig, **kwargs: Any
    ):
        super().__init__(*args, **kwargs)
        self.language_model, self.texts, self.config = language_model, texts, config

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        hidden = self.language_model.hidden(inputs, model)
        loss = hidden.new_zeros((), dtype=torch.float32)
        if self.config.ssft_contrastive:
            # A causal model's states of a prompt do not depend on the answer behind it.
            mask = inputs.get("prompt_mask", inputs["attention_mask"])
            prompts = pool(hidden.float(), mask, self.language_model.pooling)
            fields = self.language_model.embed(self.texts.fields, model)
            contrastive = contrastive_loss(prompts, fields, inputs["answers"], self.config.ssft_tau)
            loss = loss + self.config.ssft_contrastive * contrastive
        if self.config.ssft_generative:
            generative = generative_loss(hidden, inputs["answer_tokens"], self.language_model.lm_head)
            loss = loss + self.config.ssft_generative * generative
        return loss


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


def _check_length(language_model: LanguageModel, texts: _PromptTexts, config: FieldVectorsConfig) -> None:
    longest = len(language_model.framed(texts.prefix)) + config.llm_max_value_tokens
    if config.ssft_generative:
        longest += len(texts.intro) + max(map(len, texts.answers))
    limit = getattr(language_model.model.config, "max_position_embeddings", None) or longest
    if longest > limit:
        raise UserError(
            f"prompts of up to {longest} tokens do not fit into the {limit} positions of {config.language_model!r}; "
            "shorten the field descriptions, lower llm_max_value_tokens, or take another language model"
        )


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
