"""A leaderboard's jobs on this machine: processes forked by a server that has loaded the code once.

They have that code, whatever lies on the disk later.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from fuxictr_llm.common.processes import Context, Lost, Pool
from fuxictr_llm.leaderboard.run import PRELOADED_FOR_RUNS
from fuxictr_llm.leaderboard.run.executor import Task
from fuxictr_llm.leaderboard.run.jobs import Job, Outcome, outcome_of_lost, run_job

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class _Place:
    """What a process does, and the GPU that it sees, if any."""

    task: Task
    device: str


class LocalExecutor:
    """At most `jobs` processes on this machine.

    Args:
        jobs: with `devices` they spread evenly over these.
        devices: GPUs as `CUDA_VISIBLE_DEVICES` names them; a process sees one of them alone, as index 0.
            None given: all see what this process sees.
        context: how processes are started; None: by a server that has imported everything once.
    """

    one_cache = True

    def __init__(self, jobs: int = 1, devices: Sequence[str] = (), context: Context | None = None):
        self.devices = tuple(devices)
        self._pool: Pool[_Place, Outcome] = Pool(jobs, PRELOADED_FOR_RUNS, context=context)
        self._busy: Counter[str] = Counter()

    def __enter__(self) -> Self:
        self._pool.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.__exit__(kind, error, trace)

    def __len__(self) -> int:
        return len(self._pool)

    def slots(self) -> int:
        return self._pool.jobs

    def submit(self, task: Task, work: Callable[[Job], None]) -> None:
        device = min(self.devices, key=lambda name: self._busy[name], default="")
        self._busy[device] += 1
        environment = {VISIBLE_GPUS: device} if self.devices else {}
        threads = task.job.experiment.params["num_threads"]
        self._pool.start(_Place(task, device), run_job, task.job, work, threads=threads, environment=environment)

    def wait(self) -> list[tuple[Task, Outcome]]:
        ended = []
        for place, outcome in self._pool.wait():
            self._busy[place.device] -= 1
            if isinstance(outcome, Lost):
                outcome = outcome_of_lost(outcome, place.task.job.output, "try fewer --jobs")
            ended.append((place.task, outcome))
        return ended
