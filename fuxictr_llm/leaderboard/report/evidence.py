"""What the runs of a table show: means over seeds, gains over the plain backbone at the same seeds, and a verdict.

Verdicts rest on the one-sided p values of paired t tests of the test AUC (`verdicts`), corrected over the rows of a
data set. The primary result of a table are the verdicts over all backbones (`overall`): on one backbone a gain is
small beside the noise of the seeds.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median, stdev

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.leaderboard.plan.arms import Arm, Repeated, controls_in_use, controls_of
from fuxictr_llm.leaderboard.report import PairedGain, Repeat, Spread, compare
from fuxictr_llm.leaderboard.report.verdicts import UNPROVEN, Claim, Verdict, compared_at, judge
from fuxictr_llm.leaderboard.run.results import Failure, RunResult

METRICS = ("AUC", "gAUC", "logloss")
ArmKey = tuple[str, str, str | None, str | None]
BySeed = dict[Repeat, RunResult]


@dataclass(frozen=True)
class ArmRow:
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
        tokens: that a language model has `read` and `written`, likewise.
        served: what serving takes, as `cost_of_serving` has it, likewise.
        inference_ratio: seconds a test row, as a multiple of the plain backbone's; medians over seeds.
        verdict: one of VERDICTS; empty in rows of plain backbones and of controls.
        why: what the verdict rests on.
        p: of the claim that the verdict is on, after Holm's correction; None where there is no test.
    """

    dataset: str
    backbone: str
    arm: str
    method: str | None
    control: str | None
    seeds: tuple[Repeat, ...]
    failed: tuple[Repeat, ...] = ()
    missing: tuple[Repeat, ...] = ()
    test: Mapping[str, Spread] = field(default_factory=dict)
    valid: Mapping[str, Spread] = field(default_factory=dict)
    over_plain: PairedGain | None = None
    over_controls: Mapping[str, PairedGain | None] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    parameters: Mapping[str, int] = field(default_factory=dict)
    tokens: Mapping[str, float] = field(default_factory=dict)
    served: Mapping[str, float] = field(default_factory=dict)
    inference_ratio: float | None = None
    verdict: str = ""
    why: str = ""
    p: float | None = None

    @property
    def is_method(self) -> bool:
        """Whether it is neither plain nor a control, so that there is a verdict on it."""
        return self.method is not None and self.control is None

    @property
    def claim(self) -> Claim:
        """What a verdict on a method's row is on."""
        return Claim(self.over_plain, self.over_controls)


def summarize(
    results: Iterable[RunResult], failures: Iterable[Failure] = (), planned: Iterable[Repeated] = ()
) -> list[ArmRow]:
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
        if result.repeat in runs[_key(result.arm)]:
            run = f"{result.arm.backbone} {result.arm.label} on {result.arm.dataset!r} at {result.repeat_text}"
            raise UserError(f"two results of {run}; a table has one of each arm and seed")
        runs[_key(result.arm)][result.repeat] = result
    known = [*(run.arm for run in planned), *(run.arm for run in results), *(run.arm for run in failures)]
    arms = {_key(arm): arm for arm in known}
    rows = []
    for key in _in_order(arms):
        failed = {failure.repeat for failure in failures if _key(failure.arm) == key} - runs[key].keys()
        missing = {run.repeat for run in planned if _key(run.arm) == key} - runs[key].keys() - failed
        done, failed_seeds, missing_seeds = (tuple(sorted(seeds)) for seeds in (runs[key], failed, missing))
        row = ArmRow(*key[:2], arms[key].label, *key[2:], done, failed_seeds, missing_seeds)
        planned_controls = [other[3] for other in arms if other[:3] == key[:3] and other[3]]
        names = dict.fromkeys([*_declared_controls(row, runs[key]), *planned_controls]) if row.is_method else {}
        controls = {name: runs.get((*key[:3], name), {}) for name in names}
        overlap = overlap_of(run for run in results if run.arm.dataset == key[0])
        rows.append(_measured(row, runs[key], runs.get((*key[:2], None, None), {}), controls, overlap))
    return _judged(rows)


def aucs_of(runs: Mapping[Repeat, RunResult]) -> dict[Repeat, float]:
    """Seed -> test AUC, of several tasks the mean; without runs that have none."""
    return _values(runs, "test", "AUC")


def _key(arm: Arm) -> ArmKey:
    return arm.dataset, arm.backbone, arm.method, arm.control


def _in_order(arms: Iterable[ArmKey]) -> list[ArmKey]:
    """Arms of one data set, backbone and method stand together, each group where its first arm stood."""
    arms = list(arms)
    first: dict[tuple, int] = {}
    for index, key in enumerate(arms):
        for length in (1, 2, 3):
            first.setdefault(key[:length], index)
    return sorted(
        arms, key=lambda key: (first[key[:1]], first[key[:2]], key[2] is not None, first[key[:3]], key[3] is not None)
    )


def _declared_controls(row: ArmRow, runs: BySeed) -> Iterable[str]:
    """The controls of the method that ran: a config may call it by another name than the row does."""
    settings = [run.record.get("config") or {} for run in runs.values()]
    method = settings[0].get("method") if settings else None
    return controls_in_use(method, settings[0]) if method else controls_of(row.method)


def _values(runs: Mapping[Repeat, RunResult], split: str, metric: str) -> dict[Repeat, float]:
    values = {seed: run.metrics.get(split, {}).get(metric) for seed, run in runs.items()}
    return {seed: value for seed, value in values.items() if value is not None and math.isfinite(value)}


def _spreads(runs: BySeed, split: str) -> dict[str, Spread]:
    by_metric = {metric: list(_values(runs, split, metric).values()) for metric in METRICS}
    return {
        metric: Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))
        for metric, values in by_metric.items()
        if values
    }


def _measured(row: ArmRow, runs: BySeed, plain: BySeed, controls: Mapping[str, BySeed], overlap: float) -> ArmRow:
    """The row with all that does not depend on the other rows: not the verdict."""
    aucs = aucs_of(runs)
    own, others = _seconds_a_row(runs), _seconds_a_row(plain)
    return replace(
        row,
        test=_spreads(runs, "test"),
        valid=_spreads(runs, "valid"),
        over_plain=compare(aucs, aucs_of(plain), overlap) if row.method else None,
        over_controls={name: compare(aucs, aucs_of(by_seed), overlap) for name, by_seed in controls.items()},
        seconds=_medians(run.seconds for run in runs.values()),
        tokens=_medians(run.tokens for run in runs.values()),
        served=_medians(run.served for run in runs.values()),
        parameters=next((run.parameters for run in runs.values()), {}),
        inference_ratio=own / others if own and others else None,
    )


def _medians(facts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Name -> median of its values, of those that have one."""
    values: dict[str, list[float]] = defaultdict(list)
    for of_run in facts:
        for name, value in of_run.items():
            values[name].append(value)
    return {name: median(each) for name, each in values.items()}


def _seconds_a_row(runs: BySeed) -> float | None:
    """Seconds of inference a test row, the median over the seeds."""
    seconds = [run.seconds.get("test", 0) / run.rows["test"] for run in runs.values() if run.rows.get("test")]
    return median(seconds) if seconds else None


def overlap_of(results: Iterable[RunResult]) -> float:
    """Of runs on several splits of their data, test rows / train rows (`compare`); 0: all have the same split."""
    shares = [run.rows["test"] / run.rows["train"] for run in results if run.split]
    return fmean(shares) if shares else 0.0


def _judged(rows: Sequence[ArmRow]) -> list[ArmRow]:
    """The rows with their verdicts, which depend on all rows of their data set."""
    verdicts: dict[int, Verdict] = {}
    for dataset in dict.fromkeys(row.dataset for row in rows):
        judged = [index for index, row in enumerate(rows) if row.dataset == dataset and _has_claim(row)]
        verdicts |= zip(judged, judge([_claim(rows[index], rows) for index in judged]), strict=True)
    return [_with_verdict(row, verdicts.get(index)) for index, row in enumerate(rows)]


def _has_claim(row: ArmRow) -> bool:
    return row.is_method and "AUC" in row.test


def _claim(row: ArmRow, rows: Iterable[ArmRow]) -> Claim:
    """The row's claim, which says of controls that they failed."""
    others = [other for other in rows if other.control and other.failed and not other.seeds]
    failed = [other.control for other in others if _group(other) == _group(row) and other.control]
    return replace(row.claim, missing=dict.fromkeys(failed, "failed"))


def _group(row: ArmRow) -> tuple[str, str, str | None]:
    return row.dataset, row.backbone, row.method


def _with_verdict(row: ArmRow, verdict: Verdict | None) -> ArmRow:
    if verdict:
        why = verdict.why + compared_at(row.claim, row.seeds)
        return replace(row, verdict=verdict.kind, why=why, p=verdict.p)
    if row.is_method:
        return replace(row, verdict=UNPROVEN, why="no test AUC" if row.seeds else "no finished run")
    return row
