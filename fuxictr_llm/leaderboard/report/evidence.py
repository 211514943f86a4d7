"""What the runs of a table show: means over seeds, gains over the plain backbone at the same seeds, and a verdict.

Verdicts rest on the two-sided p values of paired t tests of the test AUC, after Holm's correction over all comparisons
of the table that verdicts rest on: each method with its plain backbone, and with each of its controls. Where there is
no test, with one common seed say, the verdict is unproven, and no gain is proven by fewer than FEWEST_SEEDS.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from statistics import fmean, median, stdev
from typing import Protocol

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.leaderboard.plan.arms import Arm, controls_of
from fuxictr_llm.leaderboard.report.gains import LEVEL, Gain, Spread, compare, holm
from fuxictr_llm.leaderboard.run.results import Failure, RunResult
from fuxictr_llm.registry import find_method

PROVEN, PLACEBO, WORSE, UNPROVEN = "proven", "placebo does as well", "worse", "unproven"
VERDICTS = (PROVEN, PLACEBO, WORSE, UNPROVEN)
FEWEST_SEEDS = 5  # so few differences do not show whether they are spread as the t test takes for granted
ONLY_BEFORE = "significant only before Holm's correction"
METRICS = ("AUC", "gAUC", "logloss")


@dataclass(frozen=True)
class Row:
    """A line of the table: an arm over its seeds.

    Attributes:
        arm: its name, `plain` or as in `LLaCTR random`.
        seeds, failed, missing: those that are done, that failed, and that were planned and have not run.
        test, valid: metric -> its mean and deviation; without what no run measured.
        over_plain: None for a plain row, and where it and the plain row have no seed in common.
        over_controls: of a method's row, each control that the method declares -> the gain over it; None where there
            is no seed in common.
        seconds: `train`, `test` and `language_model`, medians over the seeds of which they are known. Stages that ran
            beside others took longer.
        parameters: trainable ones of `backbone` and `method`.
        inference_ratio: seconds a test row, as a multiple of the plain backbone's; medians over seeds.
        verdict: one of VERDICTS; empty in rows of plain backbones and of controls.
        why: what the verdict rests on.
    """

    dataset: str
    backbone: str
    arm: str
    method: str | None
    control: str | None
    seeds: tuple[int, ...]
    failed: tuple[int, ...] = ()
    missing: tuple[int, ...] = ()
    test: Mapping[str, Spread] = field(default_factory=dict)
    valid: Mapping[str, Spread] = field(default_factory=dict)
    over_plain: Gain | None = None
    over_controls: Mapping[str, Gain | None] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    parameters: Mapping[str, int] = field(default_factory=dict)
    inference_ratio: float | None = None
    verdict: str = ""
    why: str = ""

    @property
    def backbone_key(self) -> tuple[str, str]:
        """What the arms that are compared have in common."""
        return self.dataset, self.backbone


class Planned(Protocol):
    """What is read of `fuxictr_llm.leaderboard.plan.PlannedRun`."""

    arm: Arm
    seed: int


ArmKey = tuple[str, str, str | None, str | None]
BySeed = dict[int, RunResult]


def summarize(
    results: Iterable[RunResult], failures: Iterable[Failure] = (), planned: Iterable[Planned] = ()
) -> list[Row]:
    """The rows of the table, in the order of the plan: plain before methods, controls after their method.

    Args:
        results: the finished runs.
        failures: those that failed; one that has finished since is left out.
        planned: all runs of the plan: what is neither finished nor failed is missing.

    Raises:
        UserError: two results of one arm at one seed.
    """
    results, failures, planned = list(results), list(failures), list(planned)
    runs: dict[ArmKey, BySeed] = defaultdict(dict)
    for result in results:
        if result.seed in runs[_key(result.arm)]:
            told = f"{result.arm.backbone} {result.arm.label} on {result.arm.dataset!r} at seed {result.seed}"
            raise UserError(f"two results of {told}; a table has one of each arm and seed")
        runs[_key(result.arm)][result.seed] = result
    arms = {_key(of.arm): of.arm for of in [*planned, *results, *failures]}
    rows = []
    for key in _in_order(arms):
        failed = {failure.seed for failure in failures if _key(failure.arm) == key} - runs[key].keys()
        missing = {run.seed for run in planned if _key(run.arm) == key} - runs[key].keys() - failed
        row = Row(*key[:2], arms[key].label, *key[2:], *(tuple(sorted(of)) for of in (runs[key], failed, missing)))
        seen = [other[3] for other in arms if other[:3] == key[:3] and other[3]]
        names = dict.fromkeys([*_declared_controls(row, runs[key]), *seen]) if _is_judged(row) else {}
        controls = {name: runs.get((*key[:3], name), {}) for name in names}
        rows.append(_measured(row, runs[key], runs.get((*key[:2], None, None), {}), controls))
    return [_judged(row) for row in _corrected(rows)]


def comparisons(rows: Iterable[Row]) -> list[Gain]:
    """The family of Holm's correction: every tested comparison on which a verdict rests."""
    tested = [gain for row in rows if _is_judged(row) for gain in (row.over_plain, *row.over_controls.values())]
    return [gain for gain in tested if gain is not None and gain.p is not None]


def aucs_of(runs: Mapping[int, RunResult]) -> dict[int, float]:
    """Seed -> test AUC, of several tasks the mean; without runs that have none."""
    return _values(runs, "test", "AUC")


def _key(arm: Arm) -> ArmKey:
    return arm.dataset, arm.backbone, arm.method, arm.control


def _in_order(arms: Iterable[ArmKey]) -> list[ArmKey]:
    """What belongs together stands together, in the order in which it came first."""
    arms = list(arms)
    first: dict[tuple, int] = {}
    for index, key in enumerate(arms):
        for length in (1, 2, 3):
            first.setdefault(key[:length], index)
    return sorted(
        arms, key=lambda key: (first[key[:1]], first[key[:2]], key[2] is not None, first[key[:3]], key[3] is not None)
    )


def _declared_controls(row: Row, runs: BySeed) -> Iterable[str]:
    """Those of the method that ran: a config may call it by another name."""
    ran = [(run.record.get("config") or {}).get("method") for run in runs.values()]
    return find_method(ran[0]).model_cls.controls if ran and ran[0] else controls_of(row.method)


def _is_judged(row: Row) -> bool:
    return row.method is not None and row.control is None


def _values(runs: Mapping[int, RunResult], split: str, metric: str) -> dict[int, float]:
    found = {seed: run.metrics.get(split, {}).get(metric) for seed, run in runs.items()}
    return {seed: value for seed, value in found.items() if value is not None and math.isfinite(value)}


def _spreads(runs: BySeed, split: str) -> dict[str, Spread]:
    found = {metric: list(_values(runs, split, metric).values()) for metric in METRICS}
    return {
        metric: Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))
        for metric, values in found.items()
        if values
    }


def _measured(row: Row, runs: BySeed, plain: BySeed, controls: Mapping[str, BySeed]) -> Row:
    """The row with everything but the correction and what rests on it."""
    aucs = aucs_of(runs)
    stages = {
        stage: [run.seconds[stage] for run in runs.values() if run.seconds.get(stage) is not None]
        for stage in ("train", "test", "language_model")
    }
    own, others = _seconds_a_row(runs), _seconds_a_row(plain)
    return replace(
        row,
        test=_spreads(runs, "test"),
        valid=_spreads(runs, "valid"),
        over_plain=compare(aucs, aucs_of(plain)) if row.method else None,
        over_controls={name: compare(aucs, aucs_of(of)) for name, of in controls.items()},
        seconds={stage: median(of) for stage, of in stages.items() if of},
        parameters=next((run.parameters for run in runs.values()), {}),
        inference_ratio=own / others if own and others else None,
    )


def _seconds_a_row(runs: BySeed) -> float | None:
    found = [run.seconds.get("test", 0) / run.rows["test"] for run in runs.values() if run.rows.get("test")]
    return median(found) if found else None


def _corrected(rows: list[Row]) -> list[Row]:
    corrected = iter(holm([gain.p for gain in comparisons(rows)]))

    def with_p(gain: Gain | None) -> Gain | None:
        return gain if gain is None or gain.p is None else replace(gain, corrected=next(corrected))

    return [  # in the order of `comparisons`
        replace(
            row,
            over_plain=with_p(row.over_plain),
            over_controls={name: with_p(gain) for name, gain in row.over_controls.items()},
        )
        if _is_judged(row)
        else row
        for row in rows
    ]


def _judged(row: Row) -> Row:
    if not _is_judged(row):
        return row
    verdict, why = _verdict(row)
    for name, gain in {"plain": row.over_plain, **row.over_controls}.items():
        if gain and gain.seeds != row.seeds:
            why += f"; compared with {name} at seed {', '.join(map(str, gain.seeds))} only"
    return replace(row, verdict=verdict, why=why)


def _verdict(row: Row) -> tuple[str, str]:
    gain, controls = row.over_plain, row.over_controls
    if "AUC" not in row.test:
        return UNPROVEN, "no test AUC" if row.seeds else "no finished run"
    if gain is None:
        return UNPROVEN, "no run of the plain backbone at these seeds"
    if gain.p is None:
        return UNPROVEN, gain.why_no_test
    if gain.is_worse:
        return WORSE, "than the plain backbone"
    none_run = "" if any(controls.values()) else "; no controls run" if controls else "; it has no controls"
    if not gain.is_better:
        return UNPROVEN, (ONLY_BEFORE if gain.p <= LEVEL else "within the noise of seeds") + none_run
    if none_run:
        return UNPROVEN, "better than plain" + none_run
    as_good = [name for name, over in controls.items() if over and _does_as_well(over, gain)]
    if as_good:
        return PLACEBO, f"not surely better than {', '.join(as_good)}"
    untold = {name: _why_untold(over, gain) for name, over in controls.items() if not (over and over.is_better)}
    if untold:
        told = ", ".join(f"{name} ({why})" for name, why in untold.items())
        return UNPROVEN, f"better than plain; not compared with control {told}"
    why = "better than plain and than " + ", ".join(controls)
    if (fewest := min(len(over.seeds) for over in (gain, *controls.values()))) < FEWEST_SEEDS:
        return UNPROVEN, f"{why}, but over {fewest} seeds; {FEWEST_SEEDS} are needed"
    return PROVEN, why


def _does_as_well(over: Gain, gain: Gain) -> bool:
    """Whether a control can stand in for the method, as far as all seeds of the comparison with plain can tell."""
    if over.p is None:  # the same difference at every seed
        return len(over.seeds) > 1 and over.mean <= 0
    return not over.is_better and len(over.seeds) >= len(gain.seeds)


def _why_untold(over: Gain | None, gain: Gain) -> str:
    if over is None:
        return "not run"
    return over.why_no_test if over.p is None else f"{len(over.seeds)} of {len(gain.seeds)} seeds only"
