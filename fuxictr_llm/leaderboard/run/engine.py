"""Runs what is left of a plan, each run in a process of its own; a kill at any moment loses at most the runs under way.

The order of the runs (`Queue`) has a language model's work done once, and no process waiting for it idly. The server
that the processes come from has loaded the code once: they have that code, whatever lies on the disk later.

results = Results("leaderboards/mine", Plan.crossed(["DeepFM"], ["movielens100k"], ["plain", "LLaCTR"], seeds=[1]))
run_plan(results, jobs=2)
"""

import contextlib
import errno
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fuxictr_llm.common.code_digest import digest_of_code
from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.files import TORCH_WRITE_ERRORS, explain_write_errors, read_json, writable_dir, write_json
from fuxictr_llm.common.processes import Context, Lost, Pool
from fuxictr_llm.config.resolve import Experiment
from fuxictr_llm.leaderboard.plan.plan import PlannedRun
from fuxictr_llm.leaderboard.plan.queue import Queue
from fuxictr_llm.leaderboard.run import PRELOADED_FOR_RUNS
from fuxictr_llm.leaderboard.run.results import OTHER_OUT, Results

DONE, FAILED, DISK_FULL = "done", "failed", "disk full"
FULL = (errno.ENOSPC, errno.EDQUOT)
# torch does not say why it cannot write.
FULL_SIGNS = ("No space left on device", "Disk quota exceeded", "os error 28", *TORCH_WRITE_ERRORS)


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


@dataclass(frozen=True)
class Job:
    """What a process is to do, and where.

    Attributes:
        experiment: says by `expid` and `model_root` what its files are called and where they lie.
        output: gets what the process prints; it is removed where all went well.
        data_only: whether the data set alone is prepared and built.
        keep_weights: whether the trained weights are left.
    """

    experiment: Experiment
    output: Path
    data_only: bool
    keep_weights: bool


@dataclass(frozen=True)
class Outcome:
    """How a job ended: DONE, FAILED or DISK_FULL, and in the last two cases why."""

    kind: str
    reason: str = ""
    traceback: str = ""


def run_job(job: Job, work: Callable[[Job], None]) -> Outcome:
    """Do a job with `work`, and say how it ended; what it prints goes to its file."""
    try:
        with _printing_to(job.output):
            work(job)
        job.output.unlink(missing_ok=True)
        return Outcome(DONE)
    except BaseException as error:
        return outcome_of(error)


def work(job: Job) -> None:
    """What a job is: a data set made ready, or a run."""
    from fuxictr_llm.common.runs import Stages
    from fuxictr_llm.experiment.preparation import make_data
    from fuxictr_llm.experiment.run import run_experiment

    check_unchanged()
    if job.data_only:
        make_data(job.experiment.params, Stages())
        return
    result = run_experiment(job.experiment)
    if not job.keep_weights:
        Path(result.model.checkpoint).unlink(missing_ok=True)


def outcome_of(error: BaseException) -> Outcome:
    """What a leaderboard notes of an error: a line of its own, and where it came from."""
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {reason_of(error)}"
    kind = DISK_FULL if any(_is_of_full_disk(part) for part in _chain(error)) else FAILED
    return Outcome(kind, reason, "".join(traceback.format_exception(error)))


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_of_full_disk(error: BaseException) -> bool:
    return getattr(error, "errno", None) in FULL or any(sign in str(error) for sign in FULL_SIGNS)


@contextlib.contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """Both outputs of this process, and of what it starts, go to a file: the parent's screen is its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        yield


def _code_on_disk() -> str:
    return digest_of_code(["fuxictr_llm.experiment.run"])


CODE = _code_on_disk()


def check_unchanged() -> None:
    """Check that the code on the disk, which a run's record names, is still that of this process.

    Raises:
        UserError: it is not.
    """
    if _code_on_disk() != CODE:
        raise UserError("the code of fuxictr_llm was changed since the leaderboard was started; start it again")


def run_plan(
    results: Results,
    *,
    jobs: int = 1,
    retry_failed: bool = False,
    keep_weights: bool = False,
    keep_predictions: bool = False,
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
        keep_predictions: whether those of the test rows are, unless an arm's `keep_predictions` says no.
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
        kept = keep_weights, keep_predictions
        engine = _Engine(results, retry_failed, kept, listener or Listener(), work)
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
        self,
        results: Results,
        retry_failed: bool,
        kept: tuple[bool, bool],
        listener: Listener,
        work: Callable[[Job], None],
    ):
        self.results, self.retry_failed, self.listener, self.work = results, retry_failed, listener, work
        self.keep_weights, self.keep_predictions = kept
        self.prepared: set[str] = set()
        done = [run for run in results.plan.runs() if results.record_of(run)]
        self.queue = Queue(results.to_do(retry_failed), {run.language_model for run in done if run.language_model})

    def run(self, pool: Pool[_Task, Outcome]) -> None:
        # Also the data of finished runs whose files are gone: made again, it may differ from that of their records.
        without_data = [run for run in self.results.plan.runs() if self.results.data_of(run) is None]
        unsure = [run for run in without_data if self.results.record_of(run)]
        unprepared = list({run.data_set: run for run in reversed([*self.queue.waiting, *unsure])}.values())
        while self.queue.waiting or len(pool):
            while pool.has_room and unprepared:
                self._start(pool, unprepared.pop(), data_only=True)
            while pool.has_room and (run := self.queue.take(self._is_prepared)):
                self._start(pool, run, data_only=False)
            for task, ended in pool.wait():
                self._end(task, _outcome_of_lost(task, ended) if isinstance(ended, Lost) else ended)

    def _is_prepared(self, run: PlannedRun) -> bool:
        return run.data_set in self.prepared

    def _start(self, pool: Pool[_Task, Outcome], run: PlannedRun, data_only: bool) -> None:
        files = self.results.files_of(run)
        if data_only:
            self.listener.preparing(run.arm.dataset)
        else:
            self.results.make_way(run)
            self.listener.started(run)
        # A run has a name, a folder and a result file of its own; pictures of 100 runs help nobody.
        params = {**run.experiment.params, "model_root": str(self.results.folder / "runs"), "pictures": False}
        params["keep_predictions"] = self.keep_predictions and params.get("keep_predictions", True)
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
        self.prepared.add(run.data_set)
        self.results.forget_data()
        left = [other for other in self.results.to_do(self.retry_failed) if other.data_set == run.data_set]
        if outcome.kind == FAILED:
            for other in left:
                self._failed(other, outcome)
            left = []
        self.queue.replace(run.data_set, left)

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
