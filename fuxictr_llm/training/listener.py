"""What the loop of training tells whoever listens: where it begins, and how each evaluation went."""

from collections.abc import Mapping
from typing import NamedTuple

AFFECTS_RESULTS = False  # see common/code_digest.py


class Evaluation(NamedTuple):
    """An evaluation on the validation data during training.

    Attributes:
        number: 1 is the first one, 0 that of the weights at the start. It is the epoch's, unless `eval_steps` is set.
        train_loss: mean over the steps since the evaluation before; None at the start.
        metrics: those that are monitored.
        learning_rate: with which the steps were made.
    """

    number: int
    train_loss: float | None
    metrics: Mapping[str, float]
    learning_rate: float


class Listener:
    """Its methods are called when something happens; they change nothing of the training."""

    def begins(self, done: int) -> None:
        """Training begins; or it goes on, after `done` evaluations."""

    def evaluated(self, evaluation: Evaluation) -> None:
        """The model was evaluated."""
