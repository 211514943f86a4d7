"""Processes: a pool of our own workers, and those that torchrun started (an ordinary run is one process)."""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import forkserver, get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from fuxictr_llm.common.errors import UserError

if TYPE_CHECKING:
    from accelerate import PartialState

Answer = TypeVar("Answer")
# The main process may download, build and encode for hours while the others wait.
PATIENCE = timedelta(days=1)
AFFECTS_RESULTS = False  # see common/code_digest.py
# Every library has threads of its own, and reads how many when it is loaded.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS")
SECONDS_TO_TIDY_UP = 10  # after the result is sent; then the process is killed
TaskT = TypeVar("TaskT")
ValueT = TypeVar("ValueT")
Context = ForkServerContext | ForkContext
STARTED = "started"
SECONDS_TO_ANSWER = timedelta(seconds=5)  # of torchrun, which notes what its processes tell each other


def under_torchrun() -> bool:
    """Whether torchrun started several processes; unlike `process_state` it neither imports torch nor connects them."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def process_state(gpu: int = -1) -> "PartialState":
    """accelerate's state of all processes, made by the first call, which connects them.

    Args:
        gpu: -1 where the work is done on the CPU; only the first call's counts.
    """
    from accelerate import PartialState

    return PartialState(cpu=gpu < 0, timeout=PATIENCE)


def process_index() -> int:
    """The number of this process among those that torchrun started; 0 is the main one."""
    return int(os.environ["RANK"]) if under_torchrun() else 0


def process_count() -> int:
    """How many processes torchrun started on all machines; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if under_torchrun() else 1


def local_process_count() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1) if under_torchrun() else 1


def is_main() -> bool:
    """Whether this process writes the files and the log."""
    return process_index() == 0


def of_processes() -> dict[str, int]:
    """How many processes there are, as part of the key of what they compute together: they round differently."""
    return {"processes": process_count()} if under_torchrun() else {}


def gathered(value: Answer) -> list[Answer]:
    """The values of all processes, in their order, in every process."""
    if not under_torchrun():
        return [value]
    from torch import distributed

    process_state()
    values: list[Any] = [None] * process_count()
    distributed.all_gather_object(values, value)
    return values


def from_main(compute: Callable[[], Answer]) -> Answer:
    """What `compute` returns in the main process, in every process; it is called in the main process alone.

    Where it raises an exception, so does this in every process.
    """
    if not under_torchrun():
        return compute()
    from accelerate.utils import broadcast_object_list

    process_state()
    answer, failure = None, None
    if is_main():
        try:
            answer = compute()
        except Exception as error:
            failure = error
    kind = UserError if isinstance(failure, UserError) else RuntimeError
    answer, kind, reason = broadcast_object_list([answer, failure and kind, failure and str(failure)])
    if kind:
        raise failure or kind(reason)
    return answer


def end_processes() -> None:
    """Disconnect the processes, at the end of their work."""
    from torch import distributed

    if distributed.is_initialized():
        process_state().destroy_process_group()


def first_to_fail() -> bool:
    """Whether no other process of torchrun has asked this: the others fail because one has, and need not say so."""
    if not under_torchrun() or "MASTER_PORT" not in os.environ:
        return True
    from torch.distributed import TCPStore

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    with contextlib.suppress(RuntimeError):  # torchrun is gone
        store = TCPStore(address, port, is_master=False, timeout=SECONDS_TO_ANSWER)
        return store.add(f"fuxictr_llm/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", 1) == 1
    return True


@dataclass(frozen=True)
class Lost:
    """In place of a result: why the process did not send one, in words.

    Attributes:
        killed_by: the name of the signal that ended it, as in `SIGKILL`; empty: none did.
    """

    reason: str
    killed_by: str = ""


class Pool(Generic[TaskT, ValueT]):
    """At most `jobs` processes at the same time, each of which calls a function once; all are killed when it is left.

    Args:
        jobs: how many processes there may be.
        preload: modules that the server of the processes imports; it is started at the first `start_server` of this
            process, so that those of a second pool are not.
        time_limit: seconds after which a process is killed; its start is not counted.
        context: another way to start processes.
    """

    def __init__(
        self, jobs: int, preload: Sequence[str] = (), time_limit: float = math.inf, context: Context | None = None
    ):
        self.jobs, self.preload, self.time_limit, self.context = jobs, preload, time_limit, context
        self._workers: list[_Worker[TaskT]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._workers:
            worker.end()

    def __len__(self) -> int:
        """How many processes work."""
        return len(self._workers)

    @property
    def has_room(self) -> bool:
        return len(self._workers) < self.jobs

    def start(
        self,
        task: TaskT,
        function: Callable[..., ValueT],
        *arguments: Any,
        threads: int = 1,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Call the function in a process of its own, in this working directory and environment.

        Args:
            task: what `wait` gives back beside the result.
            threads: of each library in the process.
            environment: variables that are others for this process.
        """
        # Asked each time: multiprocessing alone would start a killed server with other settings.
        context = self.context or start_server(self.preload)
        own = {**os.environ, **dict.fromkeys(THREADS, str(threads)), **(environment or {})}
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, str(Path.cwd()), own, function, arguments))
        process.start()
        theirs.close()
        self._workers.append(_Worker(task, process, ours))

    def wait(self) -> list[tuple[TaskT, ValueT | Lost]]:
        """Wait until something happens, and give back what ended by that, which may be nothing."""
        if not self._workers:
            return []
        signs = [sign for worker in self._workers for sign in (worker.connection, worker.process.sentinel)]
        first = min(worker.since for worker in self._workers) + self.time_limit
        seconds = None if math.isinf(first) else max(first - time.monotonic(), 0.0)
        wait(signs, seconds)
        results = [(worker, worker.result(self.time_limit)) for worker in self._workers]
        self._workers = [worker for worker, result in results if not result]
        return [(worker.task, result[0]) for worker, result in results if result]


class _Worker(Generic[TaskT]):
    def __init__(self, task: TaskT, process: BaseProcess, connection: Connection):
        self.task, self.process, self.connection = task, process, connection
        self.since = math.inf  # until it says that it has started, which takes long where much else runs

    def result(self, time_limit: float) -> tuple[Any] | None:
        """What it sent, or Lost; None while it works. A process that sent something is given time to tidy up."""
        while wait([self.connection, self.process.sentinel], timeout=0):
            try:
                message = self.connection.recv() if self.connection.poll() else None
            except (EOFError, OSError):
                message = None
            if message == STARTED:
                self.since = time.monotonic()
                continue
            self.process.join(SECONDS_TO_TIDY_UP)  # closing the connection first would kill it
            self.end()
            return message or (_lost(self.process.exitcode),)
        if time.monotonic() - self.since > time_limit:
            self.end()
            return (Lost(f"not done after {time_limit:.0f} s"),)
        return None

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


def _lost(exit_code: int | None) -> Lost:
    if exit_code is None or exit_code >= 0:
        return Lost(f"its process ended with exit code {exit_code}")
    name = signal.Signals(-exit_code).name
    return Lost(f"its process was killed by {name}", name)


def serve(
    connection: Connection, folder: str, environment: dict[str, str], function: Callable[..., Any], arguments: tuple
) -> None:
    """What a process does: call the function, and send back what it returns. Dies with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, args=(connection,), daemon=True).start()
    with contextlib.suppress(OSError):  # where memory runs out, this process ends and not what started it
        Path("/proc/self/oom_score_adj").write_text("500", encoding="ascii")
    os.environ.clear()  # the server that forked this process may have another one
    os.environ.update(environment)
    os.chdir(folder)
    connection.send(STARTED)
    connection.send((function(*arguments),))


def _die_with_parent(connection: Connection) -> None:
    """The parent sends nothing, so that this returns only when the other end is gone."""
    with contextlib.suppress(OSError):
        connection.poll(None)
    os.kill(os.getpid(), signal.SIGKILL)


def start_server(preload: Sequence[str]) -> ForkServerContext:
    """The server that forks processes, with one thread a library; it is started where there is none, or it is gone.

    It imports the modules while the caller goes on.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(list(preload))
    # The second: asking whether there is a GPU must not start CUDA, which no forked process could use then.
    changed = {**dict.fromkeys(THREADS, "1"), "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        with _interrupts_ignored():
            forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return context


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """What is started in the block ignores Ctrl-C from the first, or it would show where in its imports it was."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
