"""SSFT, self-supervised field-feature fine-tuning: a language model learns to say which field a value is of.

"Field Matters: A Lightweight LLM-enhanced Method for CTR Prediction", arXiv 2505.14057, the contrastive and
the generative objective and their weighted sum. No click label is used.

Shape symbols: `K` fields, `N` prompts of a step, `D_llm` width of the language model.
"""

import logging
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import ProgressCallback, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from fuxictr_llm.errors import UserError
from fuxictr_llm.files import OTHER_CACHE, explain_write_errors, read_json
from fuxictr_llm.semantics import distributed
from fuxictr_llm.semantics.catalog import FieldCatalog
from fuxictr_llm.semantics.config import FieldVectorsConfig
from fuxictr_llm.semantics.language_model import LanguageModel
from fuxictr_llm.semantics.prompt_batches import IGNORED, PromptBatches
from fuxictr_llm.semantics.prompts import Prompt
from fuxictr_llm.semantics.ssft_watch import (
    BestEpoch,
    FiniteGradients,
    Progress,
    accuracies,
    diverged,
    gets_no_better,
    losses,
)

SAVE_STEPS = 10
# Up to so many steps each one's loss is kept, above that the mean of every SAVE_STEPS.
STEPS_LOGGED_ALONE = 200


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
        raise UserError(f"ssft_generative needs a causal language model; {config.language_model!r} is an encoder")
    device = next(language_model.model.parameters()).device
    if device.type == "cuda" and device.index != distributed.local_index():
        raise UserError(
            f"the Trainer takes the first GPU it sees: set CUDA_VISIBLE_DEVICES={device.index}, and gpu to 0"
        )
    set_seed(config.ssft_seed)
    batches = PromptBatches(language_model, catalog, config.llm_max_value_tokens)
    tuning, held_out = ([prompt for prompt in part if batches.value_tokens(prompt)] for part in (tuning, held_out))
    if not tuning:
        raise UserError(
            "no field has values to tune the language model on, or its tokenizer drops them all; "
            "set ssft_epochs: 0 to leave it untuned"
        )
    before = accuracy(language_model, batches, held_out)
    wrapped = language_model.model = _with_lora(language_model.model, config)
    trainer = _FieldIdentification(
        model=wrapped,
        args=_arguments(checkpoints, config, len(tuning), on_gpu=device.type == "cuda"),
        train_dataset=list(tuning),
        data_collator=partial(batches.collate, with_answers=config.ssft_generative > 0),
        batches=batches,
        config=config,
    )

    def measure() -> float:
        # On their own devices the processes might see a tie differently, and not stop together.
        return distributed.as_the_first_says(lambda: accuracy(language_model, batches, held_out))

    best = BestEpoch(measure, checkpoints, config.ssft_patience)
    trainer.remove_callback(ProgressCallback)
    progress = Progress()
    for callback in [progress, FiniteGradients(checkpoints), *([best] if held_out else [])]:
        trainer.add_callback(callback)
    last = distributed.as_the_first_says(lambda: _last_checkpoint(checkpoints, config.ssft_patience))
    with explain_write_errors(checkpoints, OTHER_CACHE), progress.closed_at_the_end():
        trainer.train(resume_from_checkpoint=last)
    if held_out:
        distributed.wait_for_all()  # the first process writes the weights
        best.restore(wrapped)
    history = [(0, before), *accuracies(trainer.state.log_history)] if held_out else []
    after = accuracy(language_model, batches, held_out)
    logging.info("SSFT: field identification on %d held-out values %s -> %s", len(held_out), before, after)
    return {
        "prompts": len(tuning),
        "held_out": len(held_out),
        "epochs": round(trainer.state.epoch),
        "best_epoch": best.best_epoch(trainer.state) if held_out else round(trainer.state.epoch),
        "packed": batches.packed,
        "accuracy_before": before,
        "accuracy_after": after,
        "losses": [[step, round(loss, 4)] for step, loss in losses(trainer.state.log_history)],
        "accuracies": [[step, value] for step, value in history],
        "tuned_parameters": sum(p.numel() for p in wrapped.parameters() if p.requires_grad),
    }


@torch.no_grad()
def accuracy(language_model: LanguageModel, batches: PromptBatches, prompts: Sequence[Prompt]) -> float | None:
    """Share of prompts whose nearest field vector is the right one; None without prompts."""
    if not prompts:
        return None
    model = language_model.model
    training = model.training
    model.eval()
    right = 0
    for start in range(0, len(prompts), 32):
        batch = batches.collate(prompts[start : start + 32])
        encoded = batches.encode(batch)
        right += (cosines(encoded.prompts, encoded.fields).argmax(dim=-1).cpu() == batch["answers"]).sum().item()
    model.train(training)
    return round(right / len(prompts), 4)


class _FieldIdentification(Trainer):
    """Trainer with SSFT's loss; the K field texts are encoded with gradient, once a step."""

    def __init__(self, *args: Any, batches: PromptBatches, config: FieldVectorsConfig, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.batches, self.config = batches, config

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *_: Any, **__: Any) -> Tensor:
        encoded = self.batches.encode(inputs, model)
        loss = encoded.prompts.new_zeros(())
        if self.config.ssft_contrastive:
            contrastive = contrastive_loss(encoded.prompts, encoded.fields, inputs["answers"], self.config.ssft_tau)
            loss = loss + self.config.ssft_contrastive * contrastive
        if self.config.ssft_generative:
            lm_head = self.batches.language_model.lm_head
            generative = generative_loss(encoded.hidden, inputs["answer_tokens"], lm_head, len(encoded.prompts))
            loss = loss + self.config.ssft_generative * generative
        if not bool(torch.isfinite(loss)):
            raise diverged("the loss is", self.state.global_step + 1, Path(self.args.output_dir))
        return loss


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


def _last_checkpoint(folder: Path, patience: int | None) -> str | None:
    """The newest checkpoint to go on from; those that a kill left half written are removed.

    So is one at which the tuning stopped early: the Trainer would go on from there.
    """
    while folder.is_dir() and (last := get_last_checkpoint(str(folder))):
        state = read_json(Path(last) / "trainer_state.json")  # the Trainer writes it last
        whole = state and len([*Path(last).glob("rng_state*.pth")]) >= distributed.world_size()
        if whole and not gets_no_better(state["log_history"], patience):
            logging.info("SSFT goes on from %s", last)
            return last
        shutil.rmtree(last)
    return None


def _arguments(folder: Path, config: FieldVectorsConfig, num_prompts: int, on_gpu: bool) -> TrainingArguments:
    processes = distributed.world_size()
    if config.ssft_batch_size % processes:
        raise UserError(
            f"ssft_batch_size {config.ssft_batch_size} cannot be shared among {processes} processes; take a multiple"
        )
    steps = -(-num_prompts // config.ssft_batch_size) * config.ssft_epochs
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=config.ssft_epochs,
        per_device_train_batch_size=config.ssft_batch_size // processes,
        learning_rate=config.ssft_learning_rate,
        warmup_steps=config.ssft_warmup_steps,
        seed=config.ssft_seed,
        use_cpu=not on_gpu,
        save_strategy="steps",
        save_steps=SAVE_STEPS,
        save_total_limit=2,
        logging_steps=1 if steps <= STEPS_LOGGED_ALONE else SAVE_STEPS,
        report_to="none",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs would silently multiply the batch; torchrun is for them
    return arguments
