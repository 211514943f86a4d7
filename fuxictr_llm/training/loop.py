"""The loop of training: what FuxiCTR's `fit` does, and besides it goes on from a checkpoint.

In float32 and with `optimizer_impl: fuxictr`, weights, metrics and log lines are those of FuxiCTR's `fit`, bit by bit.
The forward pass, the loss and the evaluation are the model's own. What decides about early stopping stays where FuxiCTR
keeps it, in the model's attributes.

Weights are saved whole or not at all. FuxiCTR keeps those with the best value of `monitor`; where it is undefined or
NaN, FuxiCTR would keep none, or the first ones, without a word.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from fuxictr.pytorch.models import BaseModel

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import OTHER_CACHE, cache_dir, explain_write_errors, replacing
from fuxictr_llm.common.processes import from_main, gathered, is_main, process_index, under_torchrun
from fuxictr_llm.common.progress import Progress, Watched, counted
from fuxictr_llm.data.in_memory import starts_anywhere
from fuxictr_llm.data.shares import own_shares
from fuxictr_llm.enhancement.base import Enhancement
from fuxictr_llm.enhancement.model import EnhancedModel
from fuxictr_llm.host.batches import monitored, rows_of
from fuxictr_llm.training.build import OTHER_MODEL_ROOT
from fuxictr_llm.training.checkpoints import Checkpoints, random_states, restore_random_states
from fuxictr_llm.training.devices import (
    agreed,
    copy_from_main,
    evaluate,
    keep_freed_memory,
    mean_over_processes,
    refuse,
    seed_apart,
)
from fuxictr_llm.training.failures import explain
from fuxictr_llm.training.listener import Evaluation, Listener, Stopped
from fuxictr_llm.training.monitoring import Diverged, check_evaluation
from fuxictr_llm.training.row_updates import RowUpdates
from fuxictr_llm.training.step import TrainingStep

# Attributes in which FuxiCTR's models keep how far training is.
COUNTERS = ("_best_metric", "_stopping_steps", "_stop_training", "_total_steps", "_epoch_index")


class Trained(NamedTuple):
    """How a training went.

    Attributes:
        best_epoch: whose weights the model has; the first is 1, and 0 the start.
        seconds: that it took, those of interrupted processes included.
        seconds_before: those of interrupted processes alone; 0 where it ran in one go.
        evaluations: all on the validation data, in their order.
        evaluated_at: after so many seconds of training each.
    """

    best_epoch: int
    seconds: float
    seconds_before: float
    evaluations: Sequence[Evaluation]
    evaluated_at: Sequence[float] = ()


def fit(
    model: BaseModel,
    train_rows: Any,
    valid_rows: Any,
    params: Mapping[str, Any],
    checkpoints: Checkpoints | None = None,
    *,
    start_counts: bool = False,
    listener: Listener | None = None,
) -> Trained:
    """Train until early stopping; the model ends with the weights of the best epoch.

    Args:
        model: a model with fresh weights; `model.checkpoint` is the file of its best weights.
        train_rows, valid_rows: loaders of FuxiCTR's form.
        params: the settings.
        checkpoints: where training goes on from, and what it leaves; None: it starts anew and leaves none.
        start_counts: the model's weights are trained already, and stay where no epoch is better (best epoch 0).
        listener: hears how it goes; of a loop of the model's own, what that tells FuxiCTR's early stopping.

    Raises:
        UserError: no weights would be saved, the first step fails, training diverged, or the disk is full.
        Stopped: the listener ended it.
    """
    steps = len(train_rows) * params["epochs"]
    if (params.get("eval_steps") or 0) > steps:
        raise UserError(
            f"eval_steps {params['eval_steps']} is more than all {steps} steps of training: nothing is kept"
        )
    training = Training(model, train_rows, valid_rows, params, checkpoints, start_counts, listener or Listener())
    try:
        with training.saving_whole_files():
            if has_own_loop(model):
                refuse(model, "has a training loop")
                start = ", and its start does not count as an epoch" if start_counts else ""
                logging.info(
                    "%s has a training loop of its own: it leaves no checkpoints%s", type(model).__name__, start
                )
                training.listener.begins([])
                model._verbose = training.verbose  # its loop has no progress of ours
                model.fit(train_rows, validation_data=valid_rows, **params)
            else:
                training.run()
    except Exception as error:  # anyone's class can fail in any way
        explained = explain(model, error, params)
        if checkpoints and isinstance(explained or error, Diverged | Stopped):
            checkpoints.remove()  # from there, it would only end so again
        if explained is None:
            raise
        raise explained from error
    seconds, evaluations = (training.seconds, training.seconds_before), training.evaluations
    return Trained(training.best_epoch, *seconds, evaluations, training.evaluated_at)


class Training:
    """A model in training.

    Attributes:
        best_epoch: whose weights were saved last; the first is 1, and 0 the start.
        evaluations, evaluated_at: so far.
        start_counts: whether the weights at the start are measured, too.
        seconds_before: that training took before it was interrupted.
    """

    def __init__(
        self,
        model: BaseModel,
        train_rows: Any,
        valid_rows: Any,
        params: Mapping[str, Any],
        checkpoints: Checkpoints | None = None,
        start_counts: bool = False,
        listener: Listener | None = None,
    ):
        self.model, self.rows, self.params, self.checkpoints = model, train_rows, params, checkpoints
        keep_freed_memory(model.device)
        self.step = TrainingStep(model, params)
        self.best_epoch, self.seconds_before, self._started = 0, 0.0, time.monotonic()
        self.start_counts, self.listener = start_counts, listener or Listener()
        self.evaluations: list[Evaluation] = []
        self.evaluated_at: list[float] = []
        # Since the evaluation before the last one; of the method's term, where there is one.
        self._train_loss: float | None = None
        self._method_loss: float | None = None
        # The first batch to train on, and the losses since the last evaluation. They are added up on the device:
        # reading each of them would wait for it.
        self._next_batch, self._losses = 0, _zero_on(model.device)
        self._method_losses = _zero_on(model.device)
        self.verbose, model._verbose = model._verbose, 0  # our progress in place of FuxiCTR's
        model.valid_gen = Watched(valid_rows, "validation", self.verbose > 0, rows_of)
        model._best_metric = np.inf if model._monitor_mode == "min" else -np.inf
        model._stopping_steps = model._total_steps = model._epoch_index = 0
        model._stop_training = False
        model._steps_per_epoch = len(train_rows)
        if model._eval_steps is None:
            model._eval_steps = model._steps_per_epoch

    def run(self) -> None:
        """Train to the end, from the last checkpoint on where there is one."""
        model, epochs = self.model, self.params["epochs"]
        checkpoints = self.checkpoints
        saved = from_main(lambda: checkpoints.load(Path(model.checkpoint))) if checkpoints else None
        if saved is not None:
            self._go_on_from(saved)
        self.listener.begins(self.evaluations)
        if saved is None:
            seed_apart(self.params.get("seed", 0))
            logging.info("Start training: %d batches/epoch", model._steps_per_epoch)
            if self.start_counts:
                model._batch_index = -1  # "epoch 1 - batch 0" in the log
                model.eval_step()
                self.best_epoch = 0
            logging.info("************ Epoch=1 start ************")
        while model._epoch_index < epochs and not model._stop_training:
            self._train_epoch()
            if not model._stop_training:
                logging.info("************ Epoch=%d end ************", model._epoch_index + 1)
                self._next_batch = 0
                model._epoch_index += 1
            self._save()
        model._epoch_index = min(model._epoch_index, epochs - 1)
        logging.info("Training finished.")
        logging.info("Load best model: %s", model.checkpoint)
        if is_main():
            model.load_weights(model.checkpoint)
        copy_from_main(model)
        if isinstance(model.optimizer, RowUpdates):
            model.optimizer.dissolve_blocks()

    @property
    def seconds(self) -> float:
        """How long it took until now."""
        return round(self.seconds_before + time.monotonic() - self._started, 3)

    def _train_epoch(self) -> None:
        model, first = self.model, self._next_batch
        model.train()
        if not first:
            self._losses, self._method_losses = _zero_on(model.device), _zero_on(model.device)
            if (method := _method_of(model)) is not None:
                method.on_epoch_begin(model._epoch_index)
        for index, batch in enumerate(self._batches_from(first), start=first):
            model._total_steps += 1
            self._losses += self.step(batch, index)
            if (term := getattr(model, "method_loss", None)) is not None:
                self._method_losses += term / self.step.accumulated
            if model._total_steps % model._eval_steps == 0:
                self._train_loss = mean_over_processes(self._losses).item() / model._eval_steps
                logging.info("Train loss: %.6f", self._train_loss)
                if term is not None:
                    self._method_loss = mean_over_processes(self._method_losses).item() / model._eval_steps
                self._losses, self._method_losses = _zero_on(model.device), _zero_on(model.device)
                model.eval_step()
            if model._stop_training:
                break
            self._next_batch = index + 1
            if self._checkpoint_is_due() and starts_anywhere(self.rows):
                self._save()

    def _checkpoint_is_due(self) -> bool:
        checkpoints = self.checkpoints
        return checkpoints is not None and agreed(lambda: checkpoints.is_due, self.model._total_steps)

    def _batches_from(self, first: int) -> Iterator[Any]:
        """The batches of the epoch from one on, with progress: the rows read, and the best metric so far."""
        model = self.model
        total, unit = counted(self.rows)
        size = -(-total // model._steps_per_epoch)  # of a batch; those of which rows are left out were read whole
        name = f"epoch {model._epoch_index + 1} of {self.params['epochs']}"
        with Progress(name, total, unit, done=first * size, shown=self.verbose > 0) as progress:
            for index, batch in enumerate(_batches_from(self.rows, model._epoch_index, first), start=first):
                yield batch
                best = f"best {'+'.join(monitored(self.params))} {model._best_metric:.6f}" if self.best_epoch else None
                progress.update(min((index + 1) * size, total) - progress.done, best)

    @contextmanager
    def saving_whole_files(self) -> Iterator[None]:
        """In the block, FuxiCTR's early stopping saves weights, and compares metrics, with the checks of this class."""
        self.model.save_weights, self.model.checkpoint_and_earlystop = self._save_best, self._evaluated
        if under_torchrun():
            self.model.evaluate = partial(evaluate, self.model)
        try:
            yield
        finally:  # or the model could be neither copied nor pickled
            del self.model.save_weights, self.model.checkpoint_and_earlystop
            self.model.__dict__.pop("evaluate", None)
            self.model._verbose = self.verbose

    def _save_best(self, checkpoint: str) -> None:
        if is_main():
            # Those of networks that a method needs lie in the cache.
            way_out = OTHER_CACHE if cache_dir().absolute() in Path(checkpoint).parents else OTHER_MODEL_ROOT
            with explain_write_errors(Path(checkpoint), way_out), replacing(checkpoint) as temporary:
                type(self.model).save_weights(self.model, str(temporary))
        elif (method := _method_of(self.model)) is not None:
            method.on_save_weights()
        self.best_epoch = self.model._epoch_index + 1

    def _evaluated(self, metrics: Mapping[str, float], *args: Any, **kwargs: Any) -> None:
        model = self.model
        check_evaluation(model, metrics, self.params)
        rate = model.optimizer.param_groups[0]["lr"]
        numbers = {name: float(value) for name, value in metrics.items()}
        number = model._total_steps // model._eval_steps
        self.evaluations.append(Evaluation(number, self._train_loss, numbers, float(rate), self._method_loss))
        self.evaluated_at.append(self.seconds)
        self.listener.evaluated(self.evaluations[-1])
        type(model).checkpoint_and_earlystop(model, metrics, *args, **kwargs)

    def _save(self) -> None:
        """Write a checkpoint."""
        if self.checkpoints is None:
            return
        model, method = self.model, _method_of(self.model)
        state = {
            "step": self.step.training_state(),
            "method": {} if method is None else method.training_state(),
            "counters": {name: getattr(model, name) for name in COUNTERS},
            "next_batch": self._next_batch,
            "losses": mean_over_processes(self._losses),
            "method_losses": mean_over_processes(self._method_losses),
            "best_epoch": self.best_epoch,
            "evaluations": [evaluation._asdict() for evaluation in self.evaluations],
            "evaluated_at": self.evaluated_at,
            "seconds": self.seconds,
            "random": gathered(random_states(model.device)),
        }
        self.checkpoints.save(state, model._total_steps, Path(model.checkpoint))

    def _go_on_from(self, saved: dict[str, Any]) -> None:
        """Restore all that training depends on."""
        model, method = self.model, _method_of(self.model)
        self.step.load_training_state(saved["step"])
        for name, value in saved["counters"].items():
            setattr(model, name, value)
        self._next_batch, self._losses = saved["next_batch"], saved["losses"].to(model.device)
        self._method_losses = saved["method_losses"].to(model.device)
        self.best_epoch, self.seconds_before = saved["best_epoch"], saved["seconds"]
        self.evaluations = [Evaluation(**facts) for facts in saved["evaluations"]]
        self.evaluated_at = list(saved["evaluated_at"])
        if method is not None:
            if self._next_batch:  # otherwise the epoch begins later
                method.on_epoch_begin(model._epoch_index)
            method.load_training_state(saved["method"])
        restore_random_states(saved["random"][process_index()], model.device)
        logging.info(
            "Training goes on from epoch %d, batch %d of %d",
            *(model._epoch_index + 1, self._next_batch + 1, model._steps_per_epoch),
        )


def has_own_loop(model: BaseModel) -> bool:
    """Whether the model's class does not train by FuxiCTR's `fit` and `train_epoch`."""
    cls = model.backbone_cls if isinstance(model, EnhancedModel) else type(model)
    return cls.fit is not BaseModel.fit or cls.train_epoch is not BaseModel.train_epoch


def _method_of(model: BaseModel) -> Enhancement | None:
    return model.enhancement if isinstance(model, EnhancedModel) else None


def _zero_on(device: torch.device) -> torch.Tensor:
    return torch.zeros((), dtype=torch.float64, device=device)


def _batches_from(rows: Any, epoch: int, first: int) -> Iterator[Any]:
    """The batches of an epoch from `first` on; a loader that starts at an epoch alone reads those before, too."""
    if starts_anywhere(rows):
        rows.start_at(epoch, first)
        return own_shares(rows)
    return islice(own_shares(rows), first, None)
