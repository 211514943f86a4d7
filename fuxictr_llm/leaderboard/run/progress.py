"""The progress of a leaderboard on the screen: what runs, what is best so far, and an estimate of the time left."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from statistics import mean
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from fuxictr_llm.leaderboard.plan.plan import Arm, PlannedRun
from fuxictr_llm.leaderboard.run.engine import Listener
from fuxictr_llm.leaderboard.run.results import Results, RunResult

# What runs that take about the same time have in common; a level is used where no finished run fits the one before.
LEVELS: tuple[Callable[[Arm], Any], ...] = (
    lambda arm: (arm.dataset, arm.backbone, arm.label),
    lambda arm: (arm.dataset, arm.label),
    lambda arm: arm.dataset,
    lambda arm: (arm.backbone, arm.label),
    lambda arm: arm.backbone,
)
MOST_ROWS = 15  # of the live table


class Estimate(NamedTuple):
    """Seconds for some runs, from the `known` ones of them; for the `unknown` ones no similar run is finished."""

    seconds: float
    known: int
    unknown: int

    def __str__(self) -> str:
        if not self.known:
            return "no estimate yet: no similar run is done" if self.unknown else "nothing to do"
        left_out = f", without {self.unknown} runs of which no similar one is done" if self.unknown else ""
        return f"about {duration_text(self.seconds)}{left_out}"


class Estimator:
    """Estimates from finished runs: of the same arm, else of the same data set and method, data set, or backbone."""

    def __init__(self, finished: Iterable[RunResult]):
        self._seconds: dict[tuple[int, Any], list[float]] = {}
        for result in finished:
            seconds = sum(facts["seconds"] for facts in result.record["stages"].values())
            for level, part_of in enumerate(LEVELS):
                self._seconds.setdefault((level, part_of(result.arm)), []).append(seconds)

    def seconds_of(self, arm: Arm) -> float | None:
        """Seconds of a run of the arm; None where no similar run is finished."""
        by_level = (self._seconds.get((level, part_of(arm))) for level, part_of in enumerate(LEVELS))
        return next((mean(seconds) for seconds in by_level if seconds), None)

    def estimate(self, runs: Iterable[PlannedRun], jobs: int = 1) -> Estimate:
        """How long all of the runs take, `jobs` at the same time."""
        each = [self.seconds_of(run.arm) for run in runs]
        known = [seconds for seconds in each if seconds is not None]
        at_least = max(known, default=0.0)
        return Estimate(max(sum(known) / jobs, at_least), len(known), len(each) - len(known))


def duration_text(seconds: float) -> str:
    """`42 s`, `7 min`, `3 h 5 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class Display(Listener):
    """A live table on a terminal; elsewhere a line for each thing that happens.

    Args:
        results: of the plan that runs.
        jobs: how many runs there are at the same time.
    """

    def __init__(self, results: Results, jobs: int, console: Console):
        self.results, self.jobs, self.console = results, jobs, console
        self.running: dict[str, tuple[PlannedRun, float]] = {}
        self._read_finished()

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """The table is on the screen for the block."""
        if not self.console.is_terminal:
            yield
            return
        with Live(console=self.console, get_renderable=self._render, refresh_per_second=2, transient=True):
            yield

    def preparing(self, data_set: str) -> None:
        self._say(f"data set {data_set}: preparing it")

    def started(self, run: PlannedRun) -> None:
        self.running[run.key] = (run, time.monotonic())
        self._say(f"{run}: started", only_lines=True)

    def finished(self, run: PlannedRun) -> None:
        _, since = self.running.pop(run.key)
        self._read_finished()
        result = next(result for result in self.finished_runs if result.key == run.key)
        self._say(
            f"{run}: {metric_text(result)}, {duration_text(time.monotonic() - since)}; {self._left()}", only_lines=True
        )

    def failed(self, run: PlannedRun, reason: str) -> None:
        self.running.pop(run.key, None)
        self._say(f"{run}: FAILED: {reason}")

    def _read_finished(self) -> None:
        self.finished_runs = self.results.finished()
        self.estimator = Estimator(self.finished_runs)

    def _say(self, line: str, only_lines: bool = False) -> None:
        if not (only_lines and self.console.is_terminal):
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _left(self) -> str:
        done = {result.key for result in self.finished_runs}
        failed = {failure.key for failure in self.results.failures()} - done - self.running.keys()
        runs = {run.key: run for run in self.results.plan.runs()}  # a search changes its plan
        left = [run for key, run in runs.items() if key not in done | failed]
        passed = sum(time.monotonic() - since for _, since in list(self.running.values())) / self.jobs
        estimate = self.estimator.estimate(left, self.jobs)
        estimate = estimate._replace(seconds=max(estimate.seconds - passed, 0.0))
        state = f"{len(done)} of {len(runs)} runs done" + (f", {len(failed)} failed" if failed else "")
        return f"{state}; left: {estimate if left else 'nothing'}"

    def _render(self) -> Group:
        now = time.monotonic()
        running = [f"  {run}, {duration_text(now - since)}" for run, since in list(self.running.values())]
        return Group(escape(self._left()), *map(escape, running), best_so_far(self.finished_runs))


def best_so_far(finished: list[RunResult]) -> Table:
    """The arms by mean AUC, the best first."""
    by_arm: dict[str, list[float]] = {}
    for result in finished:
        if (auc := auc_of(result)) is not None:
            by_arm.setdefault(str(result.arm), []).append(auc)
    rows = [(mean(aucs), arm, len(aucs)) for arm, aucs in by_arm.items()]
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, title="best so far", title_justify="left")
    for column in ("arm", "seeds", "mean AUC"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for auc, arm, seeds in sorted(rows, reverse=True)[:MOST_ROWS]:
        table.add_row(escape(arm), str(seeds), f"{auc:.5f}")
    if len(rows) > MOST_ROWS:
        table.add_row(f"and {len(rows) - MOST_ROWS} more", "", "")
    return table


def auc_of(result: RunResult) -> float | None:
    """AUC on test, or on validation where there is no test data; None where AUC is no metric of the run."""
    return (result.metrics["test"] or result.metrics["valid"]).get("AUC")


def state_table(results: Results, retry_failed: bool) -> Table:
    """Every arm with the seeds that are done, failed and to do, and how long the latter may take."""
    to_do = {run.key for run in results.to_do(retry_failed)}
    estimator = Estimator(results.finished())
    by_arm: dict[Arm, list[PlannedRun]] = {}
    for run in results.plan.runs():
        by_arm.setdefault(run.arm, []).append(run)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for column in ("data set", "backbone", "arm", "done", "failed", "to do", "estimate"):
        table.add_column(column, overflow="fold")
    for arm, runs in by_arm.items():
        left = [run for run in runs if run.key in to_do]
        seeds = [
            _repeats(run for run in runs if results.record_of(run)),
            _repeats(run for run in runs if results.failure_of(run)),
            _repeats(left),
        ]
        estimate = estimator.seconds_of(arm)
        duration = "" if not left else "?" if estimate is None else f"{len(left)} x {duration_text(estimate)}"
        table.add_row(*map(escape, (arm.dataset, arm.backbone, arm.label, *seeds, duration)))
    return table


def _repeats(runs: Iterable[PlannedRun]) -> str:
    """`1 2 3`: the seeds; of splits `1/1 1/2 2/1`: split and seed."""
    return " ".join(f"{run.split}/{run.seed}" if run.split else str(run.seed) for run in runs)


def metric_text(result: RunResult) -> str:
    """How a run did: its test AUC, or the next best there is."""
    split = "test" if result.metrics["test"] else "validation"
    metrics = result.metrics["test"] or result.metrics["valid"]
    metric = "AUC" if "AUC" in metrics else next(iter(metrics))
    return f"{split} {metric} {metrics[metric]:.6f}"
