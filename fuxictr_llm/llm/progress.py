"""The progress of a tuning or an encoding, and what one that was killed goes on from.

Of a tuning: its bar, the best epoch, early stopping, checks of gradients, and checkpoints. The digests of a
checkpoint's files are written beside it, and compared before a tuning goes on from it.

Of an encoding: the finished batches of an unfinished shard, so that a process that is killed loses one batch of texts
at most. Their file has a record for each batch, in the order of encoding: a digest of the batch's tokens and vectors,
the number of its texts, the width of a vector, and the vectors in float32. Batches depend only on the texts of the
shard, so a resumed shard equals an uninterrupted one bit by bit.
"""

import hashlib
import json
import logging
import shutil
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import (
    OTHER_CACHE,
    damaged_files,
    digest_of_file,
    digests_of,
    explain_write_errors,
    read_json,
    replacing,
    write_json,
)
from fuxictr_llm.common.processes import process_state
from fuxictr_llm.common.progress import Progress

MEASURED = "measured"
BEST, BEST_DIGESTS = "best.safetensors", "best.sha256.json"
DIGESTS = "sha256.json"
RECORD_HEAD = struct.Struct("<16sII")
Batch = Sequence[list[int]]  # tokens of each text


class TuningProgress(TrainerCallback):
    """Shows the progress of a tuning, with its loss.

    Args:
        name: of the tuning, as it is shown.
    """

    def __init__(self, name: str):
        self.name = name
        self._progress: Progress | None = None
        self._note: str | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        shown = state.is_world_process_zero
        self._progress = Progress(self.name, state.max_steps, "steps", done=state.global_step, shown=shown)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._progress is not None:
            self._progress.update(state.global_step - self._progress.done, self._note)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self._note = f"loss {float(logs['loss']):.3f}"

    @contextmanager
    def closed_at_the_end(self) -> Iterator[None]:
        """Close it when the block ends, so that an error is printed on a line of its own."""
        try:
            yield
        finally:
            if self._progress is not None:
                self._progress.__exit__(*sys.exc_info())


class BestEpoch(TrainerCallback):
    """Measures the model after each epoch, keeps the weights of the best one, and stops when it gets no better.

    It goes only by the trainer's log, so that a resumed tuning keeps and stops as an uninterrupted one does.

    Args:
        measure: how good the model is now; called on every process, so that all stop together.
        folder: where the best weights are kept.
        patience: so many epochs in a row without a better measurement end the tuning; None: all epochs are run.
        line: of the log, for the number of an epoch and its measurement.
    """

    def __init__(self, measure: Callable[[], float], folder: Path, patience: int | None, line: str):
        self.measure, self.file, self.patience, self.line = measure, folder / BEST, patience, line

    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        # Before this step's checkpoint is written, so that the checkpoint knows of it.
        if state.global_step % (state.max_steps // int(args.num_train_epochs)):
            return
        measured, before = self.measure(), measurements(state.log_history)
        state.log_history.append({"step": state.global_step, "epoch": round(state.epoch), MEASURED: measured})
        logging.info(self.line, round(state.epoch), measured)
        # On a tie the later epoch: its loss is lower.
        if state.is_world_process_zero and measured >= max((value for _, value in before), default=0):
            with replacing(self.file) as temporary:
                save_file(get_peft_model_state_dict(model), temporary)
                note = self.file.with_name(BEST_DIGESTS)
                # Of the file that comes, and of the one that is there until then.
                write_json(note, [digest_of_file(temporary), *(read_json(note) or [])[:1]])
        if gets_no_better(state.log_history, self.patience):
            logging.info("The tuning stops early: it got no better for %d epochs", self.patience)
            control.should_training_stop = True

    def best_epoch(self, state: Any) -> int:
        """The epoch whose weights are kept, counted from 1."""
        values = [value for _, value in measurements(state.log_history)]
        return len(values) - values[::-1].index(max(values))

    def restore(self, model: nn.Module) -> None:
        """Give the model the weights of the best epoch."""
        set_peft_model_state_dict(model, load_file(self.file))


def gets_no_better(log: list[dict[str, Any]], patience: int | None) -> bool:
    """Whether the best epoch is `patience` epochs ago."""
    values = [value for _, value in measurements(log)]
    return patience is not None and bool(values) and len(values) - 1 - values.index(max(values)) >= patience


def measurements(log: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """Step and measurement of the epochs in a trainer's log."""
    return [(entry["step"], entry[MEASURED]) for entry in log if MEASURED in entry]


def losses(log: list[dict[str, Any]]) -> list[tuple[int, float]]:
    """Step and loss, as far as a trainer logged them."""
    return [(entry["step"], float(entry["loss"])) for entry in log if "loss" in entry]


class FiniteGradients(TrainerCallback):
    """Stops before a step whose gradients are not numbers, so that the checkpoints stay good.

    Args:
        diverged: the error to raise, for what is wrong and the number of the step.
    """

    def __init__(self, diverged: Callable[[str, int], UserError]):
        self.diverged = diverged

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **_: Any) -> None:
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if not bool(torch.stack([torch.isfinite(gradient).all() for gradient in gradients]).all()):
            raise self.diverged("gradients are", state.global_step + 1)


class WithDigests(TrainerCallback):
    """Notes the sha256 of a checkpoint's files when all of them are written."""

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.is_world_process_zero:
            folder = Path(args.output_dir, f"checkpoint-{state.global_step}")
            others = process_state().num_processes > 1  # each process writes its own random state, when it comes to it
            digests = {
                name: digest for name, digest in digests_of(folder).items() if not (others and "rng_state" in name)
            }
            write_json(folder / DIGESTS, digests)


def last_checkpoint(folder: Path, patience: int | None, name: str) -> str | None:
    """The newest checkpoint to go on from; those that a kill left half written, or that are damaged, are removed.

    So is one at which the tuning stopped early: the Trainer would go on from there.

    Args:
        patience: the tuning's, in epochs.
        name: of the tuning, for the log.
    """
    while folder.is_dir() and (last := get_last_checkpoint(str(folder))):
        checkpoint = Path(last)
        # The Trainer writes its state last, and we the digests behind it.
        state, digests = read_json(checkpoint / "trainer_state.json"), read_json(checkpoint / DIGESTS)
        whole = (
            state
            and isinstance(digests, dict)
            and len([*checkpoint.glob("rng_state*.pth")]) >= process_state().num_processes
        )
        if whole and (damaged := damaged_files(checkpoint, digests)):
            logging.warning("%s is damaged: %s goes on from one before it", checkpoint / damaged[0], name)
        elif whole and measurements(state["log_history"]) and not _best_is_whole(folder):
            logging.warning("%s is damaged: %s begins anew", folder / BEST, name)
            shutil.rmtree(folder)
            return None
        elif whole and not gets_no_better(state["log_history"], patience):
            logging.info("%s goes on from %s", name, last)
            return last
        shutil.rmtree(last)
    return None


def _best_is_whole(folder: Path) -> bool:
    digests = read_json(folder / BEST_DIGESTS)
    return isinstance(digests, list) and (folder / BEST).is_file() and digest_of_file(folder / BEST) in digests


class UnfinishedShard:
    """The batches in a file: read from it up to the first record that does not fit, computed and appended from there.

    Args:
        path: of the file; its folder exists.
        show: called after each batch with the number of its texts.

    Attributes:
        cut: how many texts of the shard are longer than they may be.
        tokens: how many the language model reads of all of them.
    """

    def __init__(self, path: Path, show: Callable[[int], None]):
        self.path, self.show, self.cut, self.tokens = path, show, 0, 0
        self._place, self._is_known = 0, path.is_file()

    def __call__(
        self, batches: Sequence[Batch], make: Callable[[Sequence[Batch]], Iterable[Tensor]]
    ) -> Iterator[Tensor]:
        """The vectors `[n, D]` of each batch, in float32 on the CPU: kept ones, then what `make` gives for the others.

        Raises:
            UserError: the file cannot be written.
        """
        known = 0
        while self._is_known and known < len(batches) and (vectors := self._known(batches[known])) is not None:
            self.show(len(batches[known]))
            known += 1
            yield vectors
        for tokens, vectors in zip(batches[known:], make(batches[known:]), strict=True):
            self._keep(tokens, vectors.numpy())
            self.show(len(tokens))
            yield vectors

    def _known(self, tokens: Batch) -> Tensor | None:
        with self.path.open("rb") as file:
            file.seek(self._place)
            head = file.read(RECORD_HEAD.size)
            digest, count, width = RECORD_HEAD.unpack(head) if len(head) == RECORD_HEAD.size else (b"", 0, 0)
            content = file.read(4 * count * width) if count == len(tokens) else b""
        if count != len(tokens) or digest != _digest(tokens, content):
            self._is_known = False
            return None
        self._place += RECORD_HEAD.size + len(content)
        return torch.from_numpy(np.frombuffer(content, "<f4").reshape(count, width).copy())

    def _keep(self, tokens: Batch, vectors: np.ndarray) -> None:
        content = np.ascontiguousarray(vectors, dtype="<f4").tobytes()
        record = RECORD_HEAD.pack(_digest(tokens, content), *vectors.shape) + content
        with explain_write_errors(self.path, OTHER_CACHE), self.path.open("r+b" if self._place else "wb") as file:
            file.seek(self._place)
            file.truncate()
            file.write(record)
        self._place += len(record)


def _digest(tokens: Batch, content: bytes) -> bytes:
    return hashlib.blake2b(json.dumps([*tokens]).encode() + content, digest_size=16).digest()
