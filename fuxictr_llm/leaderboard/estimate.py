"""How long runs will take, from those that are done."""

from collections.abc import Callable, Iterable
from statistics import mean
from typing import Any, NamedTuple

from fuxictr_llm.leaderboard.plan import Arm, PlannedRun
from fuxictr_llm.leaderboard.results import RunResult

# What a finished run has in common with the one that is asked about; the first that any has decides.
ALIKE: tuple[Callable[[Arm], Any], ...] = (
    lambda arm: (arm.dataset, arm.backbone, arm.label),
    lambda arm: (arm.dataset, arm.label),
    lambda arm: arm.dataset,
    lambda arm: (arm.backbone, arm.label),
    lambda arm: arm.backbone,
)


class Estimate(NamedTuple):
    """Seconds for some runs, and how many of these there was nothing to go by for."""

    seconds: float
    known: int
    unknown: int

    def __str__(self) -> str:
        if not self.known:
            return "no idea how long: nothing like it is done" if self.unknown else "nothing to do"
        left_out = f", and {self.unknown} runs like which nothing is done" if self.unknown else ""
        return f"about {tell_seconds(self.seconds)}{left_out}"


class Estimator:
    """Estimates from finished runs: of the same arm, else of the same data set and method, data set, or backbone."""

    def __init__(self, finished: Iterable[RunResult]):
        self._seconds: dict[tuple[int, Any], list[float]] = {}
        for result in finished:
            seconds = sum(facts["seconds"] for facts in result.record["stages"].values())
            for level, of in enumerate(ALIKE):
                self._seconds.setdefault((level, of(result.arm)), []).append(seconds)

    def seconds_of(self, arm: Arm) -> float | None:
        """Seconds of a run of the arm; None: nothing to go by."""
        found = (self._seconds.get((level, of(arm))) for level, of in enumerate(ALIKE))
        return next((mean(seconds) for seconds in found if seconds), None)

    def of(self, runs: Iterable[PlannedRun], jobs: int = 1) -> Estimate:
        """All of the runs, `jobs` at the same time."""
        each = [self.seconds_of(run.arm) for run in runs]
        known = [seconds for seconds in each if seconds is not None]
        at_least = max(known, default=0.0)
        return Estimate(max(sum(known) / jobs, at_least), len(known), len(each) - len(known))


def tell_seconds(seconds: float) -> str:
    """`42 s`, `7 min`, `3 h 5 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
