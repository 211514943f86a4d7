"""`--prune`: a trial whose curve of validation AUC lies below the median of its arm's trials ends before its time.

Optuna's MedianPruner decides, in the process of the run: the curves of the arm's trials before go along with the job.
So what is pruned, and when, follows from the arm's own trials in their order, on this machine as on Ray.
"""

import functools
import logging
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.host.batches import monitored
from fuxictr_llm.leaderboard.plan.plan import Plan
from fuxictr_llm.leaderboard.run.space import METRIC
from fuxictr_llm.training.listener import Evaluation, Listener, Stopped

# Before so many trials of an arm are done, none is pruned; nor before this epoch, as a slow start is no bad end; nor in
# an epoch that fewer of them have reached.
TRIALS_BEFORE, FIRST_EPOCH, REACHED_BY = 5, 2, 3
Curve = Sequence[float]  # validation AUC after each epoch; with `eval_steps`, after each evaluation


class Pruned(Stopped):
    """A run ended because its trial is hopeless; `curve` is as far as it came."""

    def __init__(self, curve: Curve):
        super().__init__(pruned_text(curve))
        self.curve = tuple(curve)


class Watcher(Listener):
    """Ends a run whose curve is hopeless beside others.

    Args:
        others: the curves of the arm's trials that were done before.
    """

    def __init__(self, others: Sequence[Curve]):
        self.others, self.curve = others, list[float]()

    def begins(self, before: Sequence[Evaluation]) -> None:
        self.curve = [evaluation.metrics[METRIC] for evaluation in before]

    def evaluated(self, evaluation: Evaluation) -> None:
        self.curve.append(evaluation.metrics[METRIC])
        if is_hopeless(self.curve, self.others):
            logging.info("This trial ends here: %s", pruned_text(self.curve))
            raise Pruned(self.curve)


def is_hopeless(curve: Curve, others: Sequence[Curve]) -> bool:
    """Whether Optuna's MedianPruner ends a trial after the last value of its curve.

    Args:
        others: the curves of the trials that were done before.
    """
    optuna = optuna_module()
    pruner = optuna.pruners.MedianPruner(TRIALS_BEFORE, FIRST_EPOCH, n_min_trials=REACHED_BY)
    study = optuna.create_study(direction="maximize", pruner=pruner)
    for other in others:
        study.add_trial(optuna.trial.create_trial(value=0.0, intermediate_values=dict(enumerate(other, 1))))
    trial = study.ask()
    for epoch, value in enumerate(curve, 1):
        trial.report(value, epoch)
    return bool(trial.should_prune())


def ends_so(curve: Curve, others: Sequence[Curve]) -> bool:
    """Whether a trial that was pruned would be so today, and no sooner."""
    return is_hopeless(curve, others) and not any(is_hopeless(curve[:end], others) for end in range(1, len(curve)))


def curve_of(record: Mapping[str, Any]) -> Curve:
    """The curve of a finished run, by its record; empty: it has none."""
    metrics = [evaluation["metrics"] for evaluation in record.get("evaluations", ())]
    return tuple(each[METRIC] for each in metrics if METRIC in each)


def pruned_text(curve: Curve) -> str:
    """That a trial was pruned, in words."""
    return (
        f"pruned in epoch {len(curve)}: validation {METRIC} {max(curve):.6f} is below the median of the trials before"
    )


def check_curves(plan: Plan) -> None:
    """Check that runs of the plan have the curves that `--prune` compares.

    Raises:
        UserError: an arm does not measure AUC in every epoch.
    """
    for run in plan.runs():
        if METRIC not in (watched := monitored(run.experiment.params)):
            raise UserError(f"--prune compares validation {METRIC}, but monitor of {run.arm} is {', '.join(watched)}")


@functools.cache
def optuna_module() -> ModuleType:
    """Optuna, which warns of problems alone.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise UserError("--tune needs Optuna: pip install 'fuxictr-llm[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
