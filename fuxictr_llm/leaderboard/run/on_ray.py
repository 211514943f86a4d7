"""A leaderboard's jobs as tasks of Ray; what they leave comes back and is written by this process alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.leaderboard.run.cluster import check_nodes, connect, live_nodes, name_of
from fuxictr_llm.leaderboard.run.executor import Task
from fuxictr_llm.leaderboard.run.jobs import DONE, FAILED, Job, Outcome, outcome_of, write_files
from fuxictr_llm.leaderboard.run.node import Answer, Order, do_job, variables

RETRIES = 3  # of a job whose worker or node is lost
SECONDS_TO_LOOK = 5.0  # whether nodes have come or gone
LOST_NODE = "its node is gone"


@dataclass(frozen=True)
class _Sent:
    """A job that is under way, the node it is bound to, if any, and a reference to what it adds to the cache."""

    task: Task
    node: str
    made: Any


class RayExecutor:
    """Jobs on the nodes of a Ray cluster.

    Args:
        address: of its head, as `10.0.0.1:6379`; `auto`: the cluster here, which is started if there is none.
        cpus: of a run; None: its `num_threads`.
        gpus: of a run, at most 1.
        jobs: at most so many at the same time; None: as many as there is room for.
    """

    def __init__(self, address: str = "auto", cpus: float | None = None, gpus: float = 0.0, jobs: int | None = None):
        self.address, self.cpus, self.gpus, self.jobs = address, cpus, gpus, jobs
        self.one_cache = True
        self._under_way: dict[Any, _Sent] = {}  # by the reference to the answer
        self._on_nodes: dict[str, dict[str, Outcome]] = {}  # of a data set's preparation, by the node
        self._made: list[tuple[Sequence[str], list[Any]]] = []  # names of entries, and a reference to them

    def __enter__(self) -> Self:
        import ray

        self.ray, self._was_there = ray, ray.is_initialized()
        try:
            connect(self.address)
            if not self.slots():
                raise UserError(f"--ray {self.address}: {self._too_small()}")
            self.one_cache = check_nodes()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for reference in self._under_way:
            self.ray.cancel(reference, force=True)
        self._under_way.clear()
        if not self._was_there:
            self.ray.shutdown()

    def __len__(self) -> int:
        return len({sent.task.name for sent in self._under_way.values()})

    def slots(self) -> int:
        each = [self._slots_of(node["Resources"]) for node in live_nodes()]
        return min(sum(each), self.jobs or sum(each))

    def _slots_of(self, resources: Mapping[str, float]) -> int:
        slots = int(resources.get("CPU", 0) / (self.cpus or 1))
        return min(slots, int(1 / self.gpus) * int(resources.get("GPU", 0))) if self.gpus else slots

    def _too_small(self) -> str:
        return f"no node has {self.cpus or 1:g} CPUs and {self.gpus:g} GPUs, as a run takes"

    def submit(self, task: Task, work: Callable[[Job], None]) -> None:
        order = Order(task.job, work, str(Path.cwd()), variables(), ships=not self.one_cache)
        if not task.job.data_only:
            cpus = self.cpus or task.job.experiment.params["num_threads"]
            self._start(task, order, "", num_cpus=cpus, num_gpus=self.gpus)
            return
        for node in live_nodes():  # it takes no CPU: a job that has them may wait for it
            affinity = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            self._start(task, order, name_of(node), num_cpus=0, scheduling_strategy=affinity)

    def _start(self, task: Task, order: Order, node: str, **options: Any) -> None:
        remote = self.ray.remote(do_job).options(num_returns=2, max_retries=RETRIES, **options)
        answer, made = remote.remote(order, [] if self.one_cache else self._made)
        self._under_way[answer] = _Sent(task, node, made)

    def wait(self) -> list[tuple[Task, Outcome]]:
        if not self._under_way:
            raise UserError(f"--ray {self.address}: {self._too_small()}; the same command goes on when one has")
        waiting = [*self._under_way]
        self.ray.wait(waiting, num_returns=1, timeout=SECONDS_TO_LOOK)
        ready, _ = self.ray.wait(waiting, num_returns=len(waiting), timeout=0)
        ended = []
        for reference in ready:
            sent = self._under_way.pop(reference)
            outcome = self._received(reference, sent)
            if not sent.task.job.data_only:
                ended.append((sent.task, outcome))
                continue
            self._on_nodes.setdefault(sent.task.name, {})[sent.node] = outcome
            if not any(other.task.name == sent.task.name for other in self._under_way.values()):
                ended.append((sent.task, self._on_all_nodes(sent.task)))
        return ended

    def _received(self, reference: Any, sent: _Sent) -> Outcome:
        """How a job ended; its files are written where it says."""
        try:
            answer: Answer = self.ray.get(reference)
        except self.ray.exceptions.OutOfMemoryError as error:
            more = "try more --cpus-per-run, so that fewer runs share a node"
            return Outcome(FAILED, f"Ray's memory monitor killed it, as its node ran out of memory; {more}", str(error))
        except self.ray.exceptions.RayTaskError as error:  # the node could not even begin
            return outcome_of(error.cause or error)
        except self.ray.exceptions.RayError as error:
            lost = f"Ray lost its worker {RETRIES + 1} times: {reason_of(error)}"
            return Outcome(FAILED, LOST_NODE if sent.task.job.data_only else lost, str(error))
        if answer.made:
            self._made.append((answer.made, [sent.made]))
        write_files(sent.task.job, answer.files)
        return answer.outcome

    def _on_all_nodes(self, task: Task) -> Outcome:
        """How the preparation of a data set ended.

        Raises:
            UserError: some nodes have it, and some cannot.
        """
        outcomes = {node: each for node, each in self._on_nodes.pop(task.name).items() if each.reason != LOST_NODE}
        failed = {node: each for node, each in outcomes.items() if each.kind != DONE}
        if failed and len(failed) < len(outcomes):
            node, outcome = next(iter(failed.items()))
            raise UserError(f"node {node} cannot have the data set {task.run.arm.dataset!r}: {outcome.reason}")
        return next(iter(failed.values()), Outcome(DONE))
