"""Plans that run in the test's own process, or not at all."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from fuxictr_llm.leaderboard.plan.plan import Plan, PlannedRun
from fuxictr_llm.leaderboard.run.jobs import Job, work
from fuxictr_llm.leaderboard.run.results import Failure, Results, RunResult


def run_here(folder: str) -> Callable[[Plan], Results]:
    """Runs what of a plan is not done in `folder`, as the engine does, without processes of their own."""

    def run(plan: Plan) -> Results:
        results = Results(folder, plan)
        for planned in results.to_do():
            params = {**planned.experiment.params, "model_root": f"{folder}/runs", "pictures": False}
            files = results.files_of(planned)
            experiment = replace(planned.experiment, expid=planned.name, params=params, config_name=str(files))
            output = Path(f"{files}.out")
            work(Job(experiment, output, False, False))
        results.read()
        return results

    return run


def pretended(
    measure: Callable[[PlannedRun], float | str], seen: list[PlannedRun]
) -> Callable[[Plan], SimpleNamespace]:
    """Gives each run the validation AUC that `measure` says, or the reason why it failed, and notes it in `seen`."""

    def run(plan: Plan) -> SimpleNamespace:
        finished, failures = [], []
        for planned in plan.runs():
            value = measure(planned)
            seen.append(planned)
            if isinstance(value, str):
                failures.append(Failure(planned.arm, planned.seed, planned.key, value))
                continue
            metrics = {"valid": {"AUC": value}, "test": {}}
            finished.append(RunResult(planned.arm, planned.seed, planned.key, metrics, None, {}, {}, {}, {}))
        return SimpleNamespace(plan=plan, finished=lambda: finished, failures=lambda: failures)

    return run
