"""SSFT, self-supervised field-feature fine-tuning: a language model learns to say which field a value is of.

"Field Matters: A Lightweight LLM-enhanced Method for CTR Prediction", arXiv 2505.14057, the contrastive and
the generative objective and their weighted sum. No click label is used.

Shape symbols: `K` fields, `N` prompts of a step, `D_llm` width of the language model.
"""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from transformers import set_seed

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.progress import Progress
from fuxictr_llm.llm.catalog import FieldCatalog
from fuxictr_llm.llm.language_model import LanguageModel
from fuxictr_llm.llm.lora import Schedule, check_device, train, with_lora

from .config import FieldVectorsConfig
from .prompt_batches import IGNORED, PromptBatches
from .prompts import Prompt


def contrastive_loss(prompts: Tensor, fields: Tensor, answers: Tensor, tau: float) -> Tensor:
    """`mean -log exp(cos(En(P), En(F_k)) / tau) / sum_l exp(cos(En(P), En(F_l)) / tau)`.

    Args:
        prompts: `[N, D_llm]`.
        fields: `[K, D_llm]`; the negatives are the other fields.
        answers: `[N]`, the index k of each prompt's field.
    """
    return functional.cross_entropy(cosines(prompts, fields) / tau, answers)


def generative_loss(hidden: Tensor, answer_tokens: Tensor, lm_head: nn.Module, num_prompts: int) -> Tensor:
    """`mean -log P_LLM(F_k | P)`, the log-probability summed over the tokens of the field's words.

    Args:
        hidden: `[R, T, D_llm]`, the states of prompts and answers.
        answer_tokens: `[R, T]`, the token ids of the answers in their places, -100 elsewhere.
        num_prompts: N.
    """
    targets = answer_tokens[:, 1:]
    counted = targets != IGNORED
    logits = lm_head(hidden[:, :-1][counted])  # only where an answer's token is predicted
    return functional.cross_entropy(logits.float(), targets[counted], reduction="sum") / num_prompts


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

    It ends with the weights of the epoch that was best on the held-out values, of the last one without any.
    Under torchrun all processes tune together; the batch is shared among them.

    Args:
        checkpoints: a folder for this tuning alone. One that was killed goes on from the last checkpoint in it
            (weights, optimizer, schedule, random numbers, data position) and ends with the same weights as one
            that was not. Whoever keeps the result removes it.

    Raises:
        UserError: there are no prompts, LoRA finds nothing to tune, the loss is no number, or the disk is full.
    """
    if config.ssft_generative and language_model.lm_head is None:
        raise UserError(
            f"ssft_generative needs a causal language model; {config.language_model!r} is an encoder, or has no "
            "weights of a head"
        )
    check_device(language_model.model)
    set_seed(config.ssft_seed)
    batches = PromptBatches(language_model, catalog, config.llm_max_value_tokens)
    tuning, held_out = ([prompt for prompt in part if batches.value_tokens(prompt)] for part in (tuning, held_out))
    if not tuning:
        raise UserError(
            "no field has values to tune the language model on, or its tokenizer drops them all; "
            "set ssft_epochs: 0 to leave it untuned"
        )
    before = accuracy(language_model, batches, held_out)
    language_model.model = with_lora(language_model.model, config)
    tuned = train(
        language_model,
        list(tuning),
        partial(batches.collate, with_answers=config.ssft_generative > 0),
        lambda model, batch: _loss(model, batch, batches, config),
        _schedule(config),
        checkpoints,
        measure=(lambda: cast(float, accuracy(language_model, batches, held_out))) if held_out else None,
    )
    after = accuracy(language_model, batches, held_out)
    if held_out:
        logging.info("SSFT: field identification on %d held-out values %s -> %s", len(held_out), before, after)
    else:
        logging.info("SSFT: all %d values are prompts; how well others are identified is not known", len(tuning))
    return {
        "prompts": len(tuning),
        "held_out": len(held_out),
        "epochs": tuned.epochs,
        "best_epoch": tuned.best_epoch,
        "packed": batches.packed,
        "accuracy_before": before,
        "accuracy_after": after,
        "losses": tuned.losses,
        "accuracies": [[0, before], *tuned.measurements] if held_out else [],
        "tuned_parameters": tuned.parameters,
    }


@torch.no_grad()
def accuracy(language_model: LanguageModel, batches: PromptBatches, prompts: Sequence[Prompt]) -> float | None:
    """Share of prompts whose nearest field vector is the right one; None without prompts."""
    if not prompts:
        return None
    model = language_model.model
    training = model.training
    model.eval()
    right = 0.0
    with Progress("accuracy of prompts", len(prompts), "prompts") as progress:
        for start in range(0, len(prompts), 32):
            batch = batches.collate(prompts[start : start + 32])
            encoded = batches.encode(batch)
            right += (cosines(encoded.prompts, encoded.fields).argmax(dim=-1).cpu() == batch["answers"]).sum().item()
            progress.update(len(batch["answers"]))
    model.train(training)
    return round(right / len(prompts), 4)


def _loss(model: nn.Module, batch: dict[str, Tensor], batches: PromptBatches, config: FieldVectorsConfig) -> Tensor:
    """The weighted sum of both objectives; the K field texts are encoded with gradient, once a step."""
    encoded = batches.encode(batch, model)
    loss = encoded.prompts.new_zeros(())
    if config.ssft_contrastive:
        contrastive = contrastive_loss(encoded.prompts, encoded.fields, batch["answers"], cast(float, config.ssft_tau))
        loss = loss + config.ssft_contrastive * contrastive
    if config.ssft_generative:
        lm_head = cast(nn.Module, batches.language_model.lm_head)
        generative = generative_loss(encoded.hidden, batch["answer_tokens"], lm_head, len(encoded.prompts))
        loss = loss + config.ssft_generative * generative
    return loss


def _schedule(config: FieldVectorsConfig) -> Schedule:
    remedy = "lower ssft_learning_rate or raise ssft_tau"
    return Schedule.from_config(config, "ssft", name="SSFT", measured="field identification", remedy=remedy)
