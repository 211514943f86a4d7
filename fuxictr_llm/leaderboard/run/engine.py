"""Runs what is left of a plan in parallel processes, each its own; a kill at any moment loses what runs then at most.

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
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import explain_write_errors, read_json, writable_dir, write_json
from fuxictr_llm.common.workers import started_server
from fuxictr_llm.leaderboard.plan.plan import PlannedRun
from fuxictr_llm.leaderboard.run.results import OTHER_OUT, Results
from fuxictr_llm.leaderboard.run.worker import DISK_FULL, DONE, FAILED, Job, Outcome, serve, work


class Queue:
    """The runs that wait.

    The first run of each piece of language-model work comes first. Others that need the same wait until it is done, as
    long as there is anything else to do. The rest goes seed by seed: early on there is a whole table, of few seeds.

    Args:
        runs: those to do.
        known: the language-model work that is done already.
    """

    def __init__(self, runs: Iterable[PlannedRun], known: Iterable[str]):
        self._known, self._asked = set(known), set()
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
        found = next((run for run in able if run.language_model not in under_way), able[0] if able else None)
        if found is not None:
            self.waiting.remove(found)
            self._asked |= {found.language_model} - {None}
        return found

    def ended(self, run: PlannedRun, well: bool) -> None:
        """A run is done, with its language-model work; or it failed, and another one may have to do that."""
        if well:
            self._known.add(run.language_model)
        else:
            self._asked.discard(run.language_model)

    def of_data(self, data_set: str) -> list[PlannedRun]:
        """Those that wait for a data set."""
        return [run for run in self.waiting if data_set_of(run) == data_set]

    def replace(self, data_set: str, runs: Sequence[PlannedRun]) -> None:
        """These are the runs on the data set now."""
        self._order([*(run for run in self.waiting if data_set_of(run) != data_set), *runs])


def data_set_of(run: PlannedRun) -> str:
    """The folder of the built data set, which is built once for all."""
    params = run.experiment.params
    return str(Path(params["data_root"]) / params["dataset_id"])


class Watch:
    """Is told what happens; a display overrides what it shows."""

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
    watch: Watch | None = None,
    work: Callable[[Job], None] = work,
    context: BaseContext | None = None,
) -> None:
    """Run what is neither done nor failed; the folder is this process's alone meanwhile.

    Args:
        jobs: how many runs at the same time.
        retry_failed: whether those that failed, with the same settings, data and version, are tried again.
        keep_weights: whether the trained weights are left beside the records.
        save_plan: whether the plan becomes the folder's own, in place of the one before.
        work: what a process does.
        context: how processes are started; None: by a server that has imported everything once.

    Raises:
        UserError: another process writes to the folder, or a disk is full. What was finished is kept.
    """
    with locked_folder(results.folder), _terminated_as_interrupted():
        if save_plan:
            results.write_plan()
        results.read()
        engine = _Engine(results, jobs, retry_failed, keep_weights, watch or Watch(), work, context)
        engine.run()


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
        found = read_json(holder)
        who = "another process"
        if isinstance(found, dict) and found.keys() >= {"pid", "host", "since"}:
            who = "process {pid} on {host} since {since}".format(**found)
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


@dataclass
class _Process:
    """A process under way: of a run, or for a data set."""

    process: BaseProcess
    connection: Connection
    run: PlannedRun
    data_only: bool
    output: Path

    @property
    def signs(self) -> list[Any]:
        return [self.connection, self.process.sentinel]

    def outcome(self) -> Outcome:
        """How it ended; it has said so, or is gone."""
        try:
            found = self.connection.recv() if self.connection.poll() else None
        except (EOFError, OSError):
            found = None
        self.process.join(10 if found else None)  # closing the connection first would kill it while it tidies up
        self.connection.close()
        self.end()
        return found or Outcome(FAILED, self._last_words())

    def _last_words(self) -> str:
        code = self.process.exitcode
        text = f"ended with exit code {code}"
        if code < 0:
            text = f"killed by {signal.Signals(-code).name}"
            text += ", as the system does when memory runs out; try fewer --jobs" if -code == signal.SIGKILL else ""
        with contextlib.suppress(OSError):
            lines = self.output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            text += f"; its last words: {lines[-1].strip()[:300]}" if lines else ""
        return text

    def end(self) -> None:
        self.process.kill()
        self.process.join()


class _Engine:
    def __init__(
        self,
        results: Results,
        jobs: int,
        retry_failed: bool,
        keep_weights: bool,
        watch: Watch,
        work: Callable[[Job], None],
        context: BaseContext | None,
    ):
        self.results, self.jobs, self.retry_failed, self.keep_weights = results, jobs, retry_failed, keep_weights
        self.watch, self.work, self.context = watch, work, context
        self.processes: list[_Process] = []
        self.prepared: set[str] = set()
        done = [run for run in results.plan.runs() if results.record_of(run)]
        self.queue = Queue(results.to_do(retry_failed), {run.language_model for run in done} - {None})

    def run(self) -> None:
        # Also those of finished runs whose data is not there: it may turn out to be another now.
        unsure = [run for run in self.results.plan.runs() if self.results.data_of(run) is None]
        unsure = [run for run in unsure if self.results.record_of(run)]
        unprepared = list({data_set_of(run): run for run in reversed([*self.queue.waiting, *unsure])}.values())
        if unprepared and self.context is None:
            self.context = started_server()
        try:
            while self.queue.waiting or self.processes:
                while len(self.processes) < self.jobs and unprepared:
                    self._start(unprepared.pop(), data_only=True)
                while len(self.processes) < self.jobs and (run := self.queue.take(self._is_prepared)):
                    self._start(run, data_only=False)
                wait([sign for process in self.processes for sign in process.signs])
                for process in [process for process in self.processes if wait(process.signs, timeout=0)]:
                    self.processes.remove(process)
                    self._end(process, process.outcome())
        finally:
            for process in self.processes:
                process.end()

    def _is_prepared(self, run: PlannedRun) -> bool:
        return data_set_of(run) in self.prepared

    def _start(self, run: PlannedRun, data_only: bool) -> None:
        files = self.results.files_of(run)
        if data_only:
            self.watch.preparing(run.arm.dataset)
        else:
            self.results.make_way(run)
            self.watch.started(run)
        # A run has a name, a folder and a result file of its own; pictures of 100 runs help nobody.
        params = {**run.experiment.params, "model_root": str(self.results.folder / "runs"), "pictures": False}
        experiment = replace(
            run.experiment, expid=run.name, params={**params, "verbose": 0}, changed=False, config_name=str(files)
        )
        output = Path(f"{files}.data.out" if data_only else f"{files}.out")
        job = Job(experiment, output, data_only, self.keep_weights, str(Path.cwd()), dict(os.environ))
        if self.context.get_start_method() == "forkserver":
            started_server()  # multiprocessing alone would start one with other settings, where it was killed
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=serve, args=(job, theirs, self.work))
        process.start()
        theirs.close()
        self.processes.append(_Process(process, ours, run, data_only, output))

    def _end(self, process: _Process, outcome: Outcome) -> None:
        run = process.run
        if outcome.kind == DISK_FULL:
            raise UserError(f"{run}: {outcome.reason}; what was finished is kept, and the same command goes on")
        if process.data_only:
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
            self.watch.finished(run)
        else:
            self._failed(run, outcome)

    def _data_ended(self, run: PlannedRun, outcome: Outcome) -> None:
        """The data set of this run is ready; or all runs on it fail, for the same reason."""
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
        self.watch.failed(run, outcome.reason)
