"""Trackers of a run (`trackers: [tensorboard, wandb, ...]`): accelerate's, which get what the loop of training tells.

Each evaluation is a step: train loss, learning rate, monitored metrics; the test metrics come last. A run that goes on
from a checkpoint goes on in the same place, where the tracker can: what was logged after the checkpoint is replaced.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.processes import process_state
from fuxictr_llm.common.run_files import TENSORBOARD
from fuxictr_llm.training.listener import Evaluation, Listener

AFFECTS_RESULTS = False  # see common/code_digest.py

PROJECT = "fuxictr-llm"
# The arguments of accelerate's trackers: (folder, name of the run, evaluations that are done). The others get PROJECT.
ARGUMENTS: dict[str, Callable[[Path, str, int], dict[str, Any]]] = {
    "tensorboard": lambda folder, name, done: {
        "run_name": name,
        "logging_dir": str(folder / TENSORBOARD),
        "purge_step": done + 1,
    },
    "aim": lambda folder, name, done: {"run_name": name, "logging_dir": str(folder)},
    "wandb": lambda folder, name, done: {
        "run_name": PROJECT,
        "name": name,
        "id": name,
        "resume": "allow" if done else None,  # None: what is there under this id is replaced
        "dir": str(folder),
    },
    "mlflow": lambda folder, name, done: {"experiment_name": PROJECT, "run_name": name},
}


class Trackers(Listener):
    """The trackers of one run; they start with its training, and end with the block.

    Args:
        names: as accelerate knows them.
        folder: of the run's files; what trackers write themselves goes there.
        name: of the run, its own alone.
        gpu: as in the settings.
    """

    def __init__(self, names: Iterable[str], folder: Path, name: str, gpu: int):
        self.names, self.folder, self.name, self.gpu = list(dict.fromkeys(names)), folder, name, gpu
        self._last = 0  # number of the last evaluation
        self._started: dict[str, Any] = {}

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *error: object) -> None:
        for name in list(self._started):
            self._call(name, "finish")

    def begins(self, before: Sequence[Evaluation]) -> None:
        """Start the trackers.

        Raises:
            UserError: one of them cannot start.
        """
        if not self.names:
            return
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS

        process_state(self.gpu)  # or accelerate makes one of its own choice
        self._last = done = before[-1].number if before else 0
        for name in self.names:
            arguments = ARGUMENTS.get(name, lambda *_: {"run_name": PROJECT})(self.folder, self.name, done)
            try:
                tracker = LOGGER_TYPE_TO_CLASS[name](**arguments)
                tracker.start()
            except Exception as error:  # anyone's package can fail in any way
                raise UserError(
                    f"tracker {name!r} does not start ({type(error).__name__}: {reason_of(error)}); set it up as its "
                    "package says, or leave it out of trackers"
                ) from error
            self._started[name] = tracker

    def evaluated(self, evaluation: Evaluation) -> None:
        """Log an evaluation during training."""
        self._last = evaluation.number
        values = {f"valid/{metric}": value for metric, value in evaluation.metrics.items()}
        values["train/learning_rate"] = evaluation.learning_rate
        if evaluation.train_loss is not None:
            values["train/loss"] = evaluation.train_loss
        if evaluation.method_loss is not None:
            values["train/method_loss"] = evaluation.method_loss
        self._log(values)

    def tested(self, metrics: Mapping[str, float]) -> None:
        """Log the metrics on the test data, of the best weights."""
        self._log({f"test/{metric}": value for metric, value in metrics.items()})

    def _log(self, values: Mapping[str, float]) -> None:
        numbers = {name: float(value) for name, value in values.items()}
        for name in list(self._started):
            self._call(name, "log", numbers, step=self._last)

    def _call(self, name: str, method: str, *args: Any, **options: Any) -> None:
        """Call a tracker's method; where it fails, the run goes on without this tracker."""
        try:
            getattr(self._started[name], method)(*args, **options)
        except Exception as error:
            kind, reason = type(error).__name__, reason_of(error)
            logging.warning("tracker %s fails, the run goes on without it: %s: %s", name, kind, reason)
            tracker = self._started.pop(name)
            if method != "finish":
                with suppress(Exception):
                    tracker.finish()
