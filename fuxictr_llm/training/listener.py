"""What the loop of training tells whoever listens: where it begins, and how each evaluation went."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

AFFECTS_RESULTS = False  # see common/code_digest.py


class Evaluation(NamedTuple):
    """An evaluation on the validation data during training.

    Attributes:
        number: 1 is the first one, 0 that of the weights at the start. It is the epoch's, unless `eval_steps` is set.
        train_loss: mean over the steps since the evaluation before; None at the start.
        metrics: those that are monitored.
        learning_rate: with which the steps were made.
        method_loss: the method's term of `train_loss`; None without one.
    """

    number: int
    train_loss: float | None
    metrics: Mapping[str, float]
    learning_rate: float
    method_loss: float | None = None


class Stopped(Exception):
    """A listener raises it to end a training that nobody wants any more: nothing of it is kept."""


class Listener:
    """Its methods are called when something happens; they change nothing of the training."""

    def begins(self, before: Sequence[Evaluation]) -> None:
        """Training begins; or it goes on, after these evaluations."""

    def evaluated(self, evaluation: Evaluation) -> None:
        """The model was evaluated.

        Raises:
            Stopped: training is to end here.
        """


class Several(Listener):
    """Tells several listeners what it hears, one after the other."""

    def __init__(self, *listeners: Listener):
        self.listeners = listeners

    def begins(self, before: Sequence[Evaluation]) -> None:
        for listener in self.listeners:
            listener.begins(before)

    def evaluated(self, evaluation: Evaluation) -> None:
        for listener in self.listeners:
            listener.evaluated(evaluation)
