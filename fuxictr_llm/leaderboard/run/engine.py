"""Runs what is left of a plan, each run in a process of its own; a kill at any moment loses at most the runs under way.

The order of the runs (`Queue`) has a language model's work done once, and no process waiting for it idly.

results = Results("leaderboards/mine", Plan.crossed(["DeepFM"], ["movielens100k"], ["plain", "LLaCTR"], seeds=[1]))
run_plan(results, jobs=2)
"""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import explain_write_errors, read_json, writable_dir, write_json
from fuxictr_llm.common.processes import Context, Lost, Pool
from fuxictr_llm.leaderboard.plan.plan import PlannedRun
from fuxictr_llm.leaderboard.run import PRELOADED_FOR_RUNS
from fuxictr_llm.leaderboard.run.results import OTHER_OUT, Results
from fuxictr_llm.leaderboard.run.worker import DISK_FULL, DONE, FAILED, Job, Outcome, run_job, work


class Queue:
    """The runs that wait, in the order in which they are best done.

    First comes one run for each piece of language-model work. Others that need the same work wait until it is done, as
    long as there is anything else to do. The rest goes seed by seed, so that early on there is a whole table of few
    seeds.

    Args:
        runs: those to do.
        known: the language-model work that is done already.
    """

    def __init__(self, runs: Iterable[PlannedRun], known: Iterable[str]):
        self._known: set[str | None] = set(known)
        self._asked: set[str | None] = set()
        self._order(runs)

    def _order(self, runs: Iterable[PlannedRun]) -> None:
        runs = list(runs)
        leaders = {run.language_model: run.key for run in reversed(runs)}
        leaders = {work: key for work, key in leaders.items() if work and work not in self._known}
        self.waiting = sorted(runs, key=lambda run: (leaders.get(run.language_model) != run.key, run.seed))

    def take(self, is_ready: Callable[[PlannedRun], bool]) -> PlannedRun | None:
        """The next run, out of those that are ready."""
        able = [run for run in self.waiting if is_ready(run)]
        under_way = self._asked - self._known
        taken = next((run for run in able if run.language_model not in under_way), able[0] if able else None)
        if taken is not None:
            self.waiting.remove(taken)
            self._asked |= {taken.language_model} - {None}
        return taken

    def ended(self, run: PlannedRun, well: bool) -> None:
        """Note that a run is done, with its language-model work; or that it failed, so that another may do that."""
        if well:
            self._known.add(run.language_model)
        else:
            self._asked.discard(run.language_model)

    def replace(self, data_set: str, runs: Sequence[PlannedRun]) -> None:
        """Have these wait in place of all others on the data set."""
        self._order([*(run for run in self.waiting if data_set_of(run) != data_set), *runs])


def data_set_of(run: PlannedRun) -> str:
    """The folder of the run's built data set, which is built once for all runs on it."""
    params = run.experiment.params
    return str(Path(params["data_root"]) / params["dataset_id"])


class Listener:
    """Its methods are called when something happens; a display overrides those whose news it shows."""

    def started(self, run: PlannedRun) -> None:
        """A run began."""

    def finished(self, run: PlannedRun) -> None:
        """A run is done, and its record is there."""

    def failed(self, run: PlannedRun, reason: str) -> None:
        """A run failed, which is noted."""

    def preparing(self, data_set: str) -> None:
        """A data set is made ready."""


def run_plan(
    results: Results,
    *,
    jobs: int = 1,
    retry_failed: bool = False,
    keep_weights: bool = False,
    save_plan: bool = True,
    listener: Listener | None = None,
    work: Callable[[Job], None] = work,
    context: Context | None = None,
) -> None:
    """Run what is neither done nor failed; no other leaderboard may write to the folder meanwhile.

    Args:
        jobs: how many runs at the same time.
        retry_failed: whether those that failed, with the same settings, data and version, are tried again.
        keep_weights: whether the trained weights are left beside the records.
        save_plan: whether the plan becomes the folder's own, in place of the one before.
        listener: hears of what happens.
        work: what a process does.
        context: how processes are started; None: by a server that has imported everything once.

    Raises:
        UserError: another process writes to the folder, or a disk is full. What was finished is kept.
    """
    with locked_folder(results.folder), _terminated_as_interrupted():
        if save_plan:
            results.write_plan()
        results.read()
        engine = _Engine(results, retry_failed, keep_weights, listener or Listener(), work)
        with Pool[_Task, Outcome](jobs, PRELOADED_FOR_RUNS, context=context) as pool:
            engine.run(pool)


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """For the block, no other leaderboard writes to the folder.

    Raises:
        UserError: another does (it says who), or it cannot be written to.
    """
    writable_dir(folder, OTHER_OUT)
    lock, holder = FileLock(folder / ".lock"), folder / ".lock.json"
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        held_by, who = read_json(holder), "another process"
        if isinstance(held_by, dict) and held_by.keys() >= {"pid", "host", "since"}:
            who = "process {pid} on {host} since {since}".format(**held_by)
        raise UserError(f"{str(folder)!r} is in use by {who}; wait until it is done, or {OTHER_OUT}") from error
    try:
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with explain_write_errors(holder, OTHER_OUT):
            write_json(holder, facts)
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends as Ctrl-C does, so that a display puts the screen back in order."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass(frozen=True)
class _Task:
    """What a process under way does: a run, or the preparation of a run's data set."""

    run: PlannedRun
    data_only: bool
    output: Path


class _Engine:
    def __init__(
        self, results: Results, retry_failed: bool, keep_weights: bool, listener: Listener, work: Callable[[Job], None]
    ):
        self.results, self.retry_failed, self.keep_weights = results, retry_failed, keep_weights
        self.listener, self.work = listener, work
        self.prepared: set[str] = set()
        done = [run for run in results.plan.runs() if results.record_of(run)]
        self.queue = Queue(results.to_do(retry_failed), {run.language_model for run in done if run.language_model})

    def run(self, pool: Pool[_Task, Outcome]) -> None:
        # Also the data of finished runs whose files are gone: made again, it may differ from that of their records.
        without_data = [run for run in self.results.plan.runs() if self.results.data_of(run) is None]
        unsure = [run for run in without_data if self.results.record_of(run)]
        unprepared = list({data_set_of(run): run for run in reversed([*self.queue.waiting, *unsure])}.values())
        while self.queue.waiting or len(pool):
            while pool.has_room and unprepared:
                self._start(pool, unprepared.pop(), data_only=True)
            while pool.has_room and (run := self.queue.take(self._is_prepared)):
                self._start(pool, run, data_only=False)
            for task, ended in pool.wait():
                self._end(task, _outcome_of_lost(task, ended) if isinstance(ended, Lost) else ended)

    def _is_prepared(self, run: PlannedRun) -> bool:
        return data_set_of(run) in self.prepared

    def _start(self, pool: Pool[_Task, Outcome], run: PlannedRun, data_only: bool) -> None:
        files = self.results.files_of(run)
        if data_only:
            self.listener.preparing(run.arm.dataset)
        else:
            self.results.make_way(run)
            self.listener.started(run)
        # A run has a name, a folder and a result file of its own; pictures of 100 runs help nobody.
        params = {**run.experiment.params, "model_root": str(self.results.folder / "runs"), "pictures": False}
        experiment = replace(
            run.experiment, expid=run.name, params={**params, "verbose": 0}, changed=False, config_name=str(files)
        )
        task = _Task(run, data_only, Path(f"{files}.data.out" if data_only else f"{files}.out"))
        job = Job(experiment, task.output, data_only, self.keep_weights)
        pool.start(task, run_job, job, self.work, threads=params["num_threads"])

    def _end(self, task: _Task, outcome: Outcome) -> None:
        run = task.run
        if outcome.kind == DISK_FULL:
            raise UserError(f"{run}: {outcome.reason}; what was finished is kept, and the same command goes on")
        if task.data_only:
            self._data_ended(run, outcome)
            return
        if outcome.kind == DONE:
            problem = self.results.read_run(run)
            if self.results.record_of(run) is None:
                problem = problem or "is of other data, words or code: they changed while it ran"
                outcome = Outcome(FAILED, f"its record {problem}")
        self.queue.ended(run, well=outcome.kind == DONE)
        if outcome.kind == DONE:
            self.results.forget_failure(run)
            self.listener.finished(run)
        else:
            self._failed(run, outcome)

    def _data_ended(self, run: PlannedRun, outcome: Outcome) -> None:
        """Let the runs on the run's data set start; or where it could not be made, note that all of them failed."""
        self.prepared.add(data_set_of(run))
        self.results.forget_data()
        left = [other for other in self.results.to_do(self.retry_failed) if data_set_of(other) == data_set_of(run)]
        if outcome.kind == FAILED:
            for other in left:
                self._failed(other, outcome)
            left = []
        self.queue.replace(data_set_of(run), left)

    def _failed(self, run: PlannedRun, outcome: Outcome) -> None:
        self.results.clear_unfinished(run)
        self.results.note_failure(run, outcome.reason, outcome.traceback)
        self.listener.failed(run, outcome.reason)


def _outcome_of_lost(task: _Task, lost: Lost) -> Outcome:
    text = lost.reason
    if lost.killed_by == "SIGKILL":
        text += ", as the system does when memory runs out; try fewer --jobs"
    with contextlib.suppress(OSError):
        lines = task.output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        text += f"; its last words: {lines[-1].strip()[:300]}" if lines else ""
    return Outcome(FAILED, text)
