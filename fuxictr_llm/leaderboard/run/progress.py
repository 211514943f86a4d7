"""The progress of a leaderboard on the screen: what runs, what is best so far, and an estimate of the time left."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from statistics import mean
from typing import Any, NamedTuple

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

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
LINE_SECONDS = 5.0  # between two lines of a log
STARTED, PREPARING, FINISHED, FAILED = range(4)  # of the news since the last line, the latest of the highest is told


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


@contextlib.contextmanager
def every(seconds: float, do: Callable[[], None]) -> Iterator[None]:
    """In the block, a thread of its own calls `do` again and again; once more at the end."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(seconds):
            do()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        do()


class Snapshot(NamedTuple):
    """How far a leaderboard is.

    Attributes:
        total, done, failed, to_do: counts of runs; those that run now are none of the last three.
        running: with their seconds so far.
        left: for what runs and what is to do.
        per_hour: finished runs an hour, of this command; None before the first one.
    """

    total: int
    done: int
    failed: int
    to_do: int
    running: list[tuple[PlannedRun, float]]
    left: Estimate
    per_hour: float | None

    def __str__(self) -> str:
        state = f"{self.done} of {self.total} runs done" + (f", {self.failed} failed" if self.failed else "")
        if not (self.to_do or self.running):
            return f"{state}; left: nothing"
        rate = f" ({self.per_hour:.3g} runs an hour)" if self.per_hour else ""
        return f"{state}; left: {self.left}{rate}"


class Display(Listener):
    """A live table on a terminal; elsewhere lines, one in `LINE_SECONDS` at most.

    Args:
        results: of the plan that runs.
        jobs: how many runs there are at the same time.
    """

    def __init__(self, results: Results, jobs: int, console: Console):
        self.results, self.jobs, self.console = results, jobs, console
        self.running: dict[str, tuple[PlannedRun, float]] = {}
        self.failed_keys = {failure.key for failure in results.failures()}
        self.pruned_keys: set[str] = set()
        self._since, self._finished_here = time.monotonic(), 0
        self._news: list[tuple[int, str]] = []  # since the last line: how much it matters, and the words
        self._read_finished()

    @property
    def runs(self) -> dict[str, PlannedRun]:
        """Key -> run, of the plan as it is now: a search changes it."""
        return {run.key: run for run in self.results.plan.runs()}

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """The table is on the screen for the block, or lines are printed."""
        if not self.console.is_terminal:
            with every(LINE_SECONDS, self._print_line):
                yield
            return
        with Live(console=self.console, get_renderable=self._render, refresh_per_second=2, transient=True):
            yield

    def preparing(self, data_set: str) -> None:
        self._say(PREPARING, f"data set {data_set}: preparing it")

    def started(self, run: PlannedRun) -> None:
        self.running[run.key] = (run, time.monotonic())
        self.failed_keys.discard(run.key)
        self._say(STARTED, f"{run}: started")

    def finished(self, run: PlannedRun) -> None:
        _, since = self.running.pop(run.key)
        self._finished_here += 1
        self._read_finished()
        result = next(result for result in self.finished_runs if result.key == run.key)
        self._say(FINISHED, f"{run}: {metric_text(result)}, {duration_text(time.monotonic() - since)}")

    def failed(self, run: PlannedRun, reason: str) -> None:
        self.running.pop(run.key, None)
        self.failed_keys.add(run.key)
        self._say(FAILED, f"{run}: FAILED: {reason}")

    def pruned(self, run: PlannedRun, reason: str) -> None:
        self.running.pop(run.key)
        self.pruned_keys.add(run.key)
        self._finished_here += 1
        self._say(FINISHED, f"{run}: {reason}")

    def snapshot(self) -> Snapshot:
        """How far it is now."""
        now, running = time.monotonic(), list(self.running.values())
        runs, failed = self.runs, set(self.failed_keys)
        done = {result.key for result in self.finished_runs} | self.pruned_keys
        left = [run for key, run in runs.items() if key not in done | failed]
        estimate = self.estimator.estimate(left, self.jobs)
        passed = sum(now - since for _, since in running) / self.jobs
        return Snapshot(
            total=len(runs),
            done=len(done & runs.keys()),
            failed=len(failed - done),
            to_do=sum(run.key not in self.running for run in left),
            running=[(run, now - since) for run, since in running],
            left=estimate._replace(seconds=max(estimate.seconds - passed, 0.0)),
            per_hour=3600 * self._finished_here / max(now - self._since, 1.0) or None,
        )

    def _read_finished(self) -> None:
        self.finished_runs = self.results.finished()
        self.estimator = Estimator(self.finished_runs)

    def _say(self, weight: int, line: str) -> None:
        if not self.console.is_terminal:
            self._news.append((weight, line))
        elif weight in (PREPARING, FAILED):  # what the table does not show
            self._print(line)

    def _print_line(self) -> None:
        news, self._news = self._news, []
        if news:
            most = max(weight for weight, _ in news)
            self._print(f"{[line for weight, line in news if weight == most][-1]}; {self.snapshot()}")

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> Group:
        """What fits the screen: a table that does not would flicker."""
        state = self.snapshot()
        bar = ProgressBar(total=max(state.total, 1), completed=state.done + state.failed, width=40)
        rows = max(self.console.height - len(state.running) - 7, 3)
        running = [f"  {run}, {duration_text(seconds)}" for run, seconds in state.running]
        best = best_so_far(self.finished_runs, min(rows, MOST_ROWS))
        return Group(bar, *(Text(line, no_wrap=True, overflow="ellipsis") for line in (str(state), *running)), best)


class Standing(NamedTuple):
    """An arm's mean AUC so far, over so many runs."""

    arm: Arm
    auc: float
    runs: int


def standings(finished: Iterable[RunResult]) -> dict[str, list[Standing]]:
    """The arms of each data set by mean AUC, the best first."""
    by_arm: dict[Arm, list[float]] = {}
    for result in finished:
        if (auc := auc_of(result)) is not None:
            by_arm.setdefault(result.arm, []).append(auc)
    by_data: dict[str, list[Standing]] = {}
    for arm, aucs in by_arm.items():
        by_data.setdefault(arm.dataset, []).append(Standing(arm, mean(aucs), len(aucs)))
    return {name: sorted(each, key=lambda one: -one.auc) for name, each in by_data.items()}


def best_so_far(finished: Iterable[RunResult], most: int = MOST_ROWS) -> Table:
    """The best arms of each data set, in at most so many rows (but one a data set)."""
    by_data = standings(finished)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, title="best so far", title_justify="left")
    for column in ("arm", "runs", "mean AUC"):
        table.add_column(column, justify="left" if column == "arm" else "right", no_wrap=True)
    each = max((most - 1) // max(len(by_data), 1), 1)
    for arms in by_data.values():
        for arm, auc, runs in arms[:each]:
            table.add_row(escape(str(arm)), str(runs), f"{auc:.5f}")
    if left_out := sum(len(arms[each:]) for arms in by_data.values()):
        table.add_row(f"and {left_out} more", "", "")
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
