"""Runs what is left of a plan, each run in a process of its own; a kill at any moment loses at most the runs under way.

The order of the runs (`Queue`) has a language model's work done once, and no process waiting for it idly. Where the
processes are is the executor's business.

results = Results("leaderboards/mine", Plan.crossed(["DeepFM"], ["movielens100k"], ["plain", "LLaCTR"], seeds=[1]))
run_plan(results, jobs=2)
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.signals import terminated_as_interrupted
from fuxictr_llm.leaderboard.plan.plan import PlannedRun
from fuxictr_llm.leaderboard.plan.queue import Queue
from fuxictr_llm.leaderboard.run.executor import Executor, Task
from fuxictr_llm.leaderboard.run.jobs import DISK_FULL, DONE, FAILED, PRUNED, Job, Outcome, work
from fuxictr_llm.leaderboard.run.local import LocalExecutor
from fuxictr_llm.leaderboard.run.lock import locked_folder
from fuxictr_llm.leaderboard.run.pruning import Curve
from fuxictr_llm.leaderboard.run.results import Results


class Listener:
    """Its methods are called when something happens; a display overrides those whose news it shows."""

    def started(self, run: PlannedRun) -> None:
        """A run began."""

    def finished(self, run: PlannedRun) -> None:
        """A run is done, and its record is there."""

    def failed(self, run: PlannedRun, reason: str) -> None:
        """A run failed, which is noted."""

    def pruned(self, run: PlannedRun, reason: str) -> None:
        """A run of a search ended before its time, which is noted."""

    def preparing(self, data_set: str) -> None:
        """A data set is made ready."""


class Agenda(Protocol):
    """Which runs there are to do: those of a plan, or those that a search comes upon."""

    def to_do(self, results: Results) -> Iterable[PlannedRun]:
        """The runs that are neither done nor failed, by what `results` know now."""
        ...

    def after(self, results: Results, run: PlannedRun) -> Iterable[PlannedRun]:
        """Those that are to do now that a run has ended, well or not; `results` knows how."""
        ...

    def others(self, run: PlannedRun) -> tuple[Curve, ...] | None:
        """The curves beside which a hopeless run is pruned; None: it is not."""
        ...


class WholePlan:
    """The runs of the plan in `results` that are left.

    Args:
        retry_failed: whether those that failed, with the same settings, data and version, are tried again.
    """

    def __init__(self, retry_failed: bool = False):
        self.retry_failed = retry_failed

    def to_do(self, results: Results) -> Iterable[PlannedRun]:
        return results.to_do(self.retry_failed)

    def after(self, results: Results, run: PlannedRun) -> Iterable[PlannedRun]:
        return ()

    def others(self, run: PlannedRun) -> None:
        return None


def run_plan(
    results: Results,
    *,
    jobs: int = 1,
    executor: Executor | None = None,
    agenda: Agenda | None = None,
    retry_failed: bool = False,
    keep_weights: bool = False,
    keep_predictions: bool = False,
    measure_serving: bool = False,
    save_plan: bool = True,
    listener: Listener | None = None,
    work: Callable[[Job], None] = work,
) -> None:
    """Run what is neither done nor failed; no other leaderboard may write to the folder meanwhile.

    Args:
        jobs: how many runs at the same time on this machine, where no executor is given.
        executor: where the runs are done; it has been entered, and is not left.
        agenda: the runs to do; None: those of the plan.
        retry_failed: whether those of the plan that failed, with the same settings, data and version, are tried again.
        keep_weights: whether the trained weights are left beside the records.
        keep_predictions: whether those of the test rows are, unless an arm's `keep_predictions` says no.
        measure_serving: whether records say what serving takes, unless an arm's `measure_serving` says no.
        save_plan: whether the plan becomes the folder's own, in place of the one before.
        listener: hears of what happens.
        work: what a process does.

    Raises:
        UserError: another process writes to the folder, or a disk is full. What was finished is kept.
    """
    with locked_folder(results.folder), terminated_as_interrupted():
        if save_plan:
            results.write_plan()
        results.read()
        kept = keep_weights, keep_predictions, measure_serving
        agenda, listener = agenda or WholePlan(retry_failed), listener or Listener()
        with LocalExecutor(jobs) if executor is None else nullcontext(executor) as place:
            _Engine(results, agenda, kept, listener, place, work).run()


class _Engine:
    def __init__(
        self,
        results: Results,
        agenda: Agenda,
        kept: tuple[bool, bool, bool],
        listener: Listener,
        executor: Executor,
        work: Callable[[Job], None],
    ):
        self.results, self.agenda, self.listener, self.executor, self.work = results, agenda, listener, executor, work
        self.keep_weights, self.keep_predictions, self.measure_serving = kept
        self.prepared: set[str] = set()
        left = agenda.to_do(results)
        done = [run for run in results.plan.runs() if results.record_of(run)]
        known = {run.language_model for run in done if run.language_model}
        self.queue = Queue(left, known, patient=not executor.one_cache)

    def run(self) -> None:
        # Also the data of finished runs whose files are gone: made again, it may differ from that of their records.
        without_data = [run for run in self.results.plan.runs() if self.results.data_of(run) is None]
        unsure = [run for run in without_data if self.results.record_of(run)]
        unprepared = list({run.data_set: run for run in reversed([*self.queue.waiting, *unsure])}.values())
        while self.queue.waiting or len(self.executor):
            while unprepared and self._has_room():
                self._start(unprepared.pop(), data_only=True)
            while self._has_room() and (run := self.queue.take(self._is_prepared)):
                self._start(run, data_only=False)
            for task, outcome in self.executor.wait():
                self._end(task, outcome)

    def _has_room(self) -> bool:
        return len(self.executor) < self.executor.slots()

    def _is_prepared(self, run: PlannedRun) -> bool:
        return run.data_set in self.prepared

    def _start(self, run: PlannedRun, data_only: bool) -> None:
        files = self.results.files_of(run)
        if data_only:
            self.listener.preparing(run.arm.dataset)
        else:
            self.results.make_way(run)
            self.listener.started(run)
        # A run has a name, a folder and a result file of its own; pictures of 100 runs help nobody.
        params = {**run.experiment.params, "model_root": str(self.results.folder / "runs"), "pictures": False}
        params["keep_predictions"] = self.keep_predictions and params.get("keep_predictions", True)
        params["measure_serving"] = self.measure_serving and params.get("measure_serving", True)
        experiment = replace(
            run.experiment, expid=run.name, params={**params, "verbose": 0}, changed=False, config_name=str(files)
        )
        output = Path(f"{files}.data.out" if data_only else f"{files}.out")
        others = None if data_only else self.agenda.others(run)
        job = Job(experiment, output, data_only, self.keep_weights, others)
        self.executor.submit(Task(run, job), self.work)

    def _end(self, task: Task, outcome: Outcome) -> None:
        run = task.run
        if outcome.kind == DISK_FULL:
            raise UserError(f"{run}: {outcome.reason}; what was finished is kept, and the same command goes on")
        if task.job.data_only:
            self._data_ended(run, outcome)
            return
        if outcome.kind == DONE:
            problem = self.results.read_run(run)
            if self.results.record_of(run) is None:
                problem = problem or "is of other data, words or code: they changed while it ran"
                outcome = Outcome(FAILED, f"its record {problem}")
        self.queue.ended(run, well=outcome.kind in (DONE, PRUNED))
        if outcome.kind == DONE:
            self.results.forget_failure(run)
            self.listener.finished(run)
            self.queue.add(self.agenda.after(self.results, run))
        elif outcome.kind == PRUNED:
            self.results.forget_failure(run)
            self.results.note_pruned(run, outcome.curve)
            self.listener.pruned(run, outcome.reason)
            self.queue.add(self.agenda.after(self.results, run))
        else:
            self._failed(run, outcome)

    def _data_ended(self, run: PlannedRun, outcome: Outcome) -> None:
        """Let the runs on the run's data set start; or where it could not be made, note that all of them failed."""
        self.prepared.add(run.data_set)
        self.results.forget_data()
        left = [other for other in self.agenda.to_do(self.results) if other.data_set == run.data_set]
        self.queue.replace(run.data_set, left if outcome.kind == DONE else [])
        if outcome.kind == FAILED:
            for other in left:
                self._failed(other, outcome)

    def _failed(self, run: PlannedRun, outcome: Outcome) -> None:
        self.results.clear_unfinished(run)
        self.results.note_failure(run, outcome.reason, outcome.traceback)
        self.listener.failed(run, outcome.reason)
        self.queue.add(self.agenda.after(self.results, run))
