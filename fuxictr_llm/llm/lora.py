"""LoRA for any purpose: wrap a language model, train the adapter with checkpoints, save it and merge it.

The adapter's files are peft's own: its weights and its config.
"""

import warnings
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig
from torch import Tensor, nn
from transformers import ProgressCallback, Trainer, TrainingArguments
from transformers.pytorch_utils import Conv1D

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.files import OTHER_CACHE, explain_write_errors
from fuxictr_llm.common.processes import from_main, process_state
from fuxictr_llm.config.language_models import LoraKeys
from fuxictr_llm.llm.language_model import LanguageModel, TokensRead
from fuxictr_llm.llm.progress import (
    BestEpoch,
    FiniteGradients,
    TuningProgress,
    WithDigests,
    last_checkpoint,
    losses,
    measurements,
)

if TYPE_CHECKING:
    from peft import PeftModel


# peft's own names.
WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
LORA = "lora_"
SAVE_STEPS = 10
# Up to so many steps each one's loss is kept, above that the mean of every SAVE_STEPS.
STEPS_LOGGED_ALONE = 200


def with_adapter(model: nn.Module, config: Any) -> "PeftModel":
    """peft's `get_peft_model`, without the warning that it asks transformers for something by its old name.

    Raises:
        ValueError: the config names nothing in the model, or peft knows no default for it.
    """
    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*gradient_checkpointing", category=FutureWarning)
        return get_peft_model(model, config)


def save_adapter(tuned: "PeftModel", weights: Path, base: str) -> None:
    """Write the LoRA weights of a peft model to a file, peft's config beside it.

    Args:
        tuned: the peft model; submodules that were trained as a whole are left out.
        weights: the file.
        base: names the language model in the config.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    state = get_peft_model_state_dict(tuned)
    save_file({name: value.contiguous() for name, value in state.items() if LORA in name}, weights)
    config = copy(tuned.peft_config["default"])
    config.base_model_name_or_path, config.modules_to_save, config.inference_mode = base, None, True
    config.target_modules = sorted(config.target_modules)  # a set is written in another order by every process
    config.save_pretrained(weights.parent)


def load_adapted(language_model: LanguageModel, adapter: Path) -> None:
    """Merge an adapter's weights into the language model's own, for good.

    Args:
        adapter: the folder with peft's two files.

    Raises:
        UserError: the files cannot be read, or are of another language model.
    """
    from peft import PeftConfig, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        weights, config = load_file(adapter / WEIGHTS), PeftConfig.from_pretrained(str(adapter))
        config.base_model_name_or_path = None  # peft warns where its folder is not the one that it was tuned in
        tuned = with_adapter(language_model.model, config)
        loaded = set_peft_model_state_dict(tuned, weights)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise _unfit(adapter, reason_of(error)) from error
    amiss = [*loaded.unexpected_keys, *(name for name in loaded.missing_keys if LORA in name)]
    if amiss:
        raise _unfit(adapter, f"{amiss[0]} is in one of them alone")
    language_model.model = tuned.merge_and_unload()


def _unfit(adapter: Path, reason: str) -> UserError:
    return UserError(
        f"the adapter {str(adapter)!r} cannot be merged into the language model: {reason}; remove it to have it tuned "
        "anew, or take the language model that it was tuned from"
    )


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a tuning learns, and how messages speak of it.

    Attributes:
        name: of the tuning.
        keys: what the names of its config keys begin with.
        measured: what `measure` of `train` measures.
        remedy: what to do when its numbers are no longer finite.
        patience: so many epochs in a row without a better measurement end it; None: all are run.
    """

    name: str
    keys: str
    measured: str
    remedy: str
    epochs: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    patience: int | None
    seed: int

    @classmethod
    def from_config(cls, config: Any, keys: str, *, name: str, measured: str, remedy: str) -> "Schedule":
        """The schedule in a config whose keys begin with `keys`."""
        lengths = ("epochs", "batch_size", "learning_rate", "warmup_steps", "patience", "seed")
        values = {key: getattr(config, f"{keys}_{key}") for key in lengths}
        return cls(name=name, keys=keys, measured=measured, remedy=remedy, **values)


@dataclass(frozen=True)
class Tuned:
    """The course of a tuning: `losses` and `measurements` are `[step, value]`; epochs are counted from 1."""

    epochs: int
    best_epoch: int
    losses: list[list[float]]
    measurements: list[list[float]]
    parameters: int


def check_device(model: nn.Module) -> None:
    """The Trainer knows only one GPU.

    Raises:
        UserError: the model is on another.
    """
    device = next(model.parameters()).device
    if device.type == "cuda" and device.index != process_state().local_process_index:
        raise UserError(
            f"the Trainer takes the first GPU it sees: set CUDA_VISIBLE_DEVICES={device.index}, and gpu to 0"
        )


def lora_config(config: LoraKeys, also_trained: list[str] | None = None) -> LoraConfig:
    """peft's config of the settings; `also_trained` names submodules that are trained as a whole."""
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=config.lora_targets,
        modules_to_save=also_trained,
        task_type="FEATURE_EXTRACTION",
    )


def with_lora(model: nn.Module, config: LoraKeys, also_trained: list[str] | None = None) -> "PeftModel":
    """The model with trainable LoRA weights, all of its own frozen.

    Raises:
        UserError: there is nothing to tune.
    """
    try:
        return with_adapter(model, lora_config(config, also_trained))
    except ValueError as error:
        layers = [name.split(".") for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, Conv1D))]
        names = sorted({path[-1] for path in layers if path[0] not in (also_trained or ())})
        raise UserError(
            f"LoRA finds nothing to tune in {type(model).__name__} ({reason_of(error)}); name projections with "
            f"lora_targets, of: {', '.join(names) or 'it has none'}"
        ) from error


def train(
    language_model: LanguageModel,
    rows: Sequence[Any],
    collate: Callable[[list[Any]], dict[str, Any]],
    loss: Callable[[nn.Module, dict[str, Any]], Tensor],
    schedule: Schedule,
    checkpoints: Path,
    measure: Callable[[], float] | None = None,
) -> Tuned:
    """Train what `with_lora` made trainable in the language model; it ends with the weights of the best epoch.

    Under torchrun all processes train together; the batch is shared among them.

    Args:
        collate: rows -> batch.
        loss: model and batch -> loss.
        checkpoints: a folder for this tuning alone. One that was killed goes on from the last checkpoint in it
            (weights, optimizer, schedule, random numbers, data position, tokens read) and ends as one that was not.
            Whoever keeps the result removes it.
        measure: how good the model is now, the higher the better; None: the last epoch counts as the best.

    Raises:
        UserError: the loss or a gradient is no number, or the disk is full.
    """
    model = language_model.model
    device = next(model.parameters()).device
    trainer = _Trainer(
        model=model,
        args=_arguments(checkpoints, schedule, len(rows), on_gpu=device.type == "cuda"),
        train_dataset=rows,
        data_collator=collate,
        loss=loss,
        schedule=schedule,
    )
    trainer.remove_callback(ProgressCallback)
    progress, best = TuningProgress(schedule.name), None
    trainer.add_callback(progress)
    trainer.add_callback(FiniteGradients(trainer.diverged))
    trainer.add_callback(WithDigests())
    if measure:
        # On their own devices the processes might see a tie differently, and not stop together.
        best = BestEpoch(
            lambda: from_main(measure),
            checkpoints,
            schedule.patience,
            f"{schedule.name} epoch %d: {schedule.measured} %.4f",
        )
        trainer.add_callback(best)
    trainer.add_callback(TokensRead(language_model))  # behind what measures
    last = from_main(lambda: last_checkpoint(checkpoints, schedule.patience, schedule.name))
    with explain_write_errors(checkpoints, OTHER_CACHE), progress.closed_at_the_end():
        trainer.train(resume_from_checkpoint=last)
    state = trainer.state
    if best:
        process_state().wait_for_everyone()  # the main process writes the weights
        best.restore(model)
    return Tuned(
        epochs=round(state.epoch),
        best_epoch=best.best_epoch(state) if best else round(state.epoch),
        losses=[[step, round(value, 4)] for step, value in losses(state.log_history)],
        measurements=[[step, value] for step, value in measurements(state.log_history)],
        parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )


class _Trainer(Trainer):
    """Trainer with a loss of one's own that has to be finite."""

    def __init__(self, *args: Any, loss: Callable[..., Tensor], schedule: Schedule, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.loss, self.schedule = loss, schedule

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> Tensor:
        loss = self.loss(model, inputs)
        if not bool(torch.isfinite(loss)):
            raise self.diverged("the loss is", self.state.global_step + 1)
        return loss

    def diverged(self, what: str, step: int) -> UserError:
        """The error for numbers that are no longer finite at `step`."""
        folder = Path(self.args.output_dir)
        names = sorted((path.name for path in folder.glob("checkpoint-*")), key=lambda name: int(name.split("-")[-1]))
        where = f"the last good checkpoint is {str(folder / names[-1])!r}" if names else "there was no checkpoint yet"
        return UserError(f"{self.schedule.name}: {what} not finite at step {step} ({where}); {self.schedule.remedy}")


def _arguments(folder: Path, schedule: Schedule, num_rows: int, on_gpu: bool) -> TrainingArguments:
    processes = process_state().num_processes
    if schedule.batch_size % processes:
        raise UserError(
            f"{schedule.keys}_batch_size {schedule.batch_size} cannot be shared among {processes} processes; "
            "take a multiple"
        )
    steps = -(-num_rows // schedule.batch_size) * schedule.epochs
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=schedule.epochs,
        per_device_train_batch_size=schedule.batch_size // processes,
        learning_rate=schedule.learning_rate,
        warmup_steps=schedule.warmup_steps,
        seed=schedule.seed,
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
