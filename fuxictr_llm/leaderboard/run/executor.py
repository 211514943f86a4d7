"""What a leaderboard asks of the place where its jobs are done: `local.py` is this machine, `on_ray.py` a cluster."""

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from fuxictr_llm.leaderboard.plan.plan import PlannedRun
from fuxictr_llm.leaderboard.run.jobs import Job, Outcome


@dataclass(frozen=True)
class Task:
    """A job, and what it is for: a run, or the preparation of a run's data set."""

    run: PlannedRun
    job: Job

    @property
    def name(self) -> str:
        return self.run.data_set if self.job.data_only else self.run.key


class Executor(Protocol):
    """Does jobs, each in a process of its own; all that work are stopped when it is left.

    Attributes:
        one_cache: whether all jobs see one cache, so that one may wait in it for another's language-model work.
    """

    one_cache: bool

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def __len__(self) -> int:
        """How many jobs work."""
        ...

    def slots(self) -> int:
        """How many jobs can work at the same time, as things are now."""
        ...

    def submit(self, task: Task, work: Callable[[Job], None]) -> None:
        """Start a job, whose files are where it says when it has ended; `work` is what its process does."""
        ...

    def wait(self) -> list[tuple[Task, Outcome]]:
        """Wait until something happens, and give back what ended by that, which may be nothing.

        Raises:
            UserError: nothing can go on.
        """
        ...
