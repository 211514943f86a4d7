"""Plans that run in the test's own process, or not at all."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from fuxictr_llm.leaderboard.plan.plan import Plan, PlannedRun
from fuxictr_llm.leaderboard.run.jobs import Job, work
from fuxictr_llm.leaderboard.run.pruning import Pruned, Watcher
from fuxictr_llm.leaderboard.run.results import Failure, Results, RunResult
from fuxictr_llm.leaderboard.run.tuning import Trials
from fuxictr_llm.training.listener import Evaluation


def run_here(folder: str) -> Callable[[Plan], Results]:
    """Runs what of a plan is not done in `folder`, as the engine does, without processes of their own."""

    def run(plan: Plan) -> Results:
        results = Results(folder, plan)
        for planned in results.to_do():
            _run_one(results, planned)
        results.read()
        return results

    return run


def trials_here(folder: str) -> Callable[[Trials], None]:
    """The same for a search."""

    def run(trials: Trials) -> None:
        results = Results(folder, trials.plan)
        waiting = trials.to_do(results)
        while waiting:
            _run_one(results, planned := waiting.pop(0))
            results.forget_data()
            results.read_run(planned)
            waiting += trials.after(results, planned)

    return run


def _run_one(results: Results, planned: PlannedRun) -> None:
    params = {**planned.experiment.params, "model_root": f"{results.folder}/runs", "pictures": False}
    files = results.files_of(planned)
    experiment = replace(planned.experiment, expid=planned.name, params=params, changed=False, config_name=str(files))
    work(Job(experiment, Path(f"{files}.out"), False, False))


class Pretended:
    """What a search asks of `Results`, of runs that nobody runs."""

    def __init__(self, plan: Plan):
        self.plan, self.by_key = plan, {}

    def to_do(self, retry_failed: bool = False) -> list[PlannedRun]:
        return [run for run in self.plan.runs() if run.key not in self.by_key]

    def finished(self) -> list[RunResult]:
        return [self._result(run) for run in self.plan.runs() if isinstance(self.by_key.get(run.key), float | tuple)]

    def curve_of_pruned(self, run: PlannedRun) -> tuple[float, ...] | None:
        found = self.by_key.get(run.key)
        return found.curve if isinstance(found, Pruned) else None

    def failures(self) -> list[Failure]:
        failed = [(run, self.by_key.get(run.key)) for run in self.plan.runs()]
        return [Failure(run.arm, run.seed, run.key, reason) for run, reason in failed if isinstance(reason, str)]

    def _result(self, run: PlannedRun) -> RunResult:
        found = self.by_key[run.key]
        curve = found if isinstance(found, tuple) else (found,)
        record = {"evaluations": [{"metrics": {"AUC": auc}} for auc in curve]}
        metrics = {"valid": {"AUC": max(curve)}, "test": {}}
        return RunResult(run.arm, run.seed, run.key, metrics, None, {}, {}, {}, record)


def _watched(curve: Sequence[float], others: Sequence[Sequence[float]]) -> tuple[float, ...] | Pruned:
    """What becomes of a run with this curve."""
    watcher = Watcher(others)
    watcher.begins([])
    try:
        for number, auc in enumerate(curve, 1):
            watcher.evaluated(Evaluation(number, 0.5, {"AUC": auc}, 1e-3))
    except Pruned as pruned:
        return pruned
    return tuple(curve)


def pretended(
    measure: Callable[[PlannedRun], float | str | tuple[float, ...]],
    seen: list[PlannedRun],
    draw: Callable[[int], int] = lambda waiting: 0,
) -> Callable[[Trials], None]:
    """Gives each run the validation AUC that `measure` says, or the reason why it failed, and notes it in `seen`.

    A tuple is its curve, which may be pruned.

    Args:
        draw: which of so many waiting runs is the next to end.
    """

    def run(trials: Trials) -> None:
        results = Pretended(trials.plan)
        waiting = trials.to_do(results)
        while waiting:
            planned = waiting.pop(draw(len(waiting)))
            found, others = measure(planned), trials.others(planned)
            results.by_key[planned.key] = found if others is None else _watched(found, others)
            seen.append(planned)
            waiting += trials.after(results, planned)

    return run
