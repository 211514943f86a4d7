"""What the runs of a table show: means over seeds, gains over the plain backbone at the same seeds, and a verdict.

Verdicts rest on the two-sided p values of paired t tests of the test AUC, after Holm's correction over all comparisons
in the table that decide a verdict: each method with its plain backbone, and with each of its controls. Where there is
no test, as with one common seed, the verdict is unproven, and no gain is proven by fewer than FEWEST_SEEDS. The gain
averaged over all backbones of a data set stands beside them: on one backbone it is small beside the noise of the seeds.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, median, stdev

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.leaderboard.plan.arms import Arm, controls_in_use, controls_of
from fuxictr_llm.leaderboard.plan.plan import PLAIN, PlannedRun
from fuxictr_llm.leaderboard.report import LEVEL, PairedGain, Spread, compare, holm
from fuxictr_llm.leaderboard.run.results import Failure, RunResult

PROVEN, PLACEBO, WORSE, UNPROVEN = "proven", "placebo does as well", "worse", "unproven"
VERDICTS = (PROVEN, PLACEBO, WORSE, UNPROVEN)
FEWEST_SEEDS = 5  # fewer differences do not show whether they are normally distributed, as the t test assumes
ONLY_BEFORE = "significant only before Holm's correction"
METRICS = ("AUC", "gAUC", "logloss")
ArmKey = tuple[str, str, str | None, str | None]
BySeed = dict[int, RunResult]
Runs = Mapping[tuple[str, str, str], Mapping[int, RunResult]]  # data set, backbone, name of the arm -> seed -> run
ValuesOf = Callable[[Mapping[int, RunResult]], Mapping[int, float]]


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
    over_plain: PairedGain | None = None
    over_controls: Mapping[str, PairedGain | None] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)
    parameters: Mapping[str, int] = field(default_factory=dict)
    inference_ratio: float | None = None
    verdict: str = ""
    why: str = ""


def summarize(
    results: Iterable[RunResult], failures: Iterable[Failure] = (), planned: Iterable[PlannedRun] = ()
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
        if result.seed in runs[_key(result.arm)]:
            run = f"{result.arm.backbone} {result.arm.label} on {result.arm.dataset!r} at seed {result.seed}"
            raise UserError(f"two results of {run}; a table has one of each arm and seed")
        runs[_key(result.arm)][result.seed] = result
    known = [*(run.arm for run in planned), *(run.arm for run in results), *(run.arm for run in failures)]
    arms = {_key(arm): arm for arm in known}
    rows = []
    for key in _in_order(arms):
        failed = {failure.seed for failure in failures if _key(failure.arm) == key} - runs[key].keys()
        missing = {run.seed for run in planned if _key(run.arm) == key} - runs[key].keys() - failed
        done, failed_seeds, missing_seeds = (tuple(sorted(seeds)) for seeds in (runs[key], failed, missing))
        row = ArmRow(*key[:2], arms[key].label, *key[2:], done, failed_seeds, missing_seeds)
        planned_controls = [other[3] for other in arms if other[:3] == key[:3] and other[3]]
        names = dict.fromkeys([*_declared_controls(row, runs[key]), *planned_controls]) if _is_judged(row) else {}
        controls = {name: runs.get((*key[:3], name), {}) for name in names}
        rows.append(_measured(row, runs[key], runs.get((*key[:2], None, None), {}), controls))
    return [_judged(row) for row in _corrected(rows)]


def comparisons(rows: Iterable[ArmRow]) -> list[PairedGain]:
    """The family of Holm's correction: every tested comparison on which a verdict rests."""
    tested = [gain for row in rows if _is_judged(row) for gain in (row.over_plain, *row.over_controls.values())]
    return [gain for gain in tested if gain is not None and gain.p is not None]


def aucs_of(runs: Mapping[int, RunResult]) -> dict[int, float]:
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


def _is_judged(row: ArmRow) -> bool:
    return row.method is not None and row.control is None


def _values(runs: Mapping[int, RunResult], split: str, metric: str) -> dict[int, float]:
    values = {seed: run.metrics.get(split, {}).get(metric) for seed, run in runs.items()}
    return {seed: value for seed, value in values.items() if value is not None and math.isfinite(value)}


def _spreads(runs: BySeed, split: str) -> dict[str, Spread]:
    by_metric = {metric: list(_values(runs, split, metric).values()) for metric in METRICS}
    return {
        metric: Spread(fmean(values), stdev(values) if len(values) > 1 else None, len(values))
        for metric, values in by_metric.items()
        if values
    }


def _measured(row: ArmRow, runs: BySeed, plain: BySeed, controls: Mapping[str, BySeed]) -> ArmRow:
    """The row with all that does not depend on the other rows: not the corrected p values, nor the verdict."""
    aucs = aucs_of(runs)
    stages = {
        stage: [run.seconds[stage] for run in runs.values() if stage in run.seconds]
        for stage in ("train", "test", "language_model")
    }
    own, others = _seconds_a_row(runs), _seconds_a_row(plain)
    return replace(
        row,
        test=_spreads(runs, "test"),
        valid=_spreads(runs, "valid"),
        over_plain=compare(aucs, aucs_of(plain)) if row.method else None,
        over_controls={name: compare(aucs, aucs_of(by_seed)) for name, by_seed in controls.items()},
        seconds={stage: median(seconds) for stage, seconds in stages.items() if seconds},
        parameters=next((run.parameters for run in runs.values()), {}),
        inference_ratio=own / others if own and others else None,
    )


def _seconds_a_row(runs: BySeed) -> float | None:
    """Seconds of inference a test row, the median over the seeds."""
    seconds = [run.seconds.get("test", 0) / run.rows["test"] for run in runs.values() if run.rows.get("test")]
    return median(seconds) if seconds else None


def _corrected(rows: list[ArmRow]) -> list[ArmRow]:
    """The rows with corrected p values, which depend on all comparisons of the table."""
    corrected = iter(holm([gain.p for gain in comparisons(rows) if gain.p is not None]))

    def with_p(gain: PairedGain | None) -> PairedGain | None:
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


def _judged(row: ArmRow) -> ArmRow:
    """The row with its verdict."""
    if not _is_judged(row):
        return row
    verdict, why = _verdict(row)
    for name, gain in {"plain": row.over_plain, **row.over_controls}.items():
        if gain and gain.seeds != row.seeds:
            why += f"; compared with {name} at seed {', '.join(map(str, gain.seeds))} only"
    return replace(row, verdict=verdict, why=why)


def _verdict(row: ArmRow) -> tuple[str, str]:
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
    open_ones = {name: _why_open(over, gain) for name, over in controls.items() if not (over and over.is_better)}
    if open_ones:
        reasons = ", ".join(f"{name} ({why})" for name, why in open_ones.items())
        return UNPROVEN, f"better than plain; not compared with control {reasons}"
    why = "better than plain and than " + ", ".join(controls)
    if (fewest := min(len(over.seeds) for over in (gain, *controls.values()) if over)) < FEWEST_SEEDS:
        return UNPROVEN, f"{why}, but over {fewest} seeds; {FEWEST_SEEDS} are needed"
    return PROVEN, why


def _does_as_well(over: PairedGain, gain: PairedGain) -> bool:
    """Whether the control is as good as the method by all seeds at which the method was compared with plain."""
    if over.p is None:  # the same difference at every seed
        return len(over.seeds) > 1 and over.mean <= 0
    return not over.is_better and len(over.seeds) >= len(gain.seeds)


def _why_open(over: PairedGain | None, gain: PairedGain) -> str:
    """Why the comparison with a control decides nothing."""
    if over is None:
        return "not run"
    return over.why_no_test if over.p is None else f"{len(over.seeds)} of {len(gain.seeds)} seeds only"


@dataclass(frozen=True)
class Overall:
    """An arm over the backbones on which it and the plain one have a seed in common.

    Attributes:
        arm: as in `ArmRow`.
        backbones: their names; the arm's other backbones do not count here.
        better: on how many of them its mean is above the plain one's.
        gain: of the AUC averaged over the backbones, at the seeds that all of them have; not corrected. None where
            they have none in common.
        over_control: of a control, what its method gains over it, likewise; None for a method.
        verdicts: verdict -> how many rows have it; empty for a control.
    """

    dataset: str
    arm: str
    method: str
    control: str | None
    backbones: tuple[str, ...]
    better: int
    gain: PairedGain | None
    over_control: PairedGain | None
    verdicts: Mapping[str, int]


def over_backbones(rows: Sequence[ArmRow], results: Iterable[RunResult]) -> list[Overall]:
    """A line for every method and control of a data set, in the order of the rows."""
    runs, lines = runs_by_row(results), []
    arms = dict.fromkeys((row.dataset, row.arm, row.method, row.control) for row in rows if row.method)
    for dataset, arm, method, control in arms:
        arm_rows = [row for row in rows if (row.dataset, row.arm) == (dataset, arm)]
        compared = [row for row in arm_rows if row.over_plain]
        method_rows = [row for row in rows if (row.dataset, row.method) == (dataset, method)]
        judged = [row for row in method_rows if control and row.over_controls.get(control)]
        lines.append(
            Overall(
                dataset,
                arm,
                method,
                control,
                tuple(row.backbone for row in compared),
                sum(row.over_plain.mean > 0 for row in compared if row.over_plain),
                mean_gain(compared, runs, aucs_of),
                mean_gain(judged, runs, aucs_of, over=arm) if control else None,
                {verdict: sum(row.verdict == verdict for row in arm_rows) for verdict in VERDICTS if not control},
            )
        )
    return lines


def mean_gain(rows: Sequence[ArmRow], runs: Runs, values_of: ValuesOf, over: str = PLAIN) -> PairedGain | None:
    """The gain over another arm of a value averaged over the backbones of the rows, at the seeds that all of them have.

    Args:
        rows: of one arm on one data set.
        runs: from `runs_by_row`.
        values_of: seed -> run to seed -> value.
        over: the other arm.
    """
    ours = [values_of(runs[row.dataset, row.backbone, row.arm]) for row in rows]
    others = [values_of(runs[row.dataset, row.backbone, over]) for row in rows]
    seeds = set.intersection(*(set(values) for values in [*ours, *others])) if rows else set()
    our_means, other_means = ({seed: fmean(values[seed] for values in arm) for seed in seeds} for arm in (ours, others))
    return compare(our_means, other_means)


def runs_by_row(results: Iterable[RunResult]) -> Runs:
    """The runs by data set, backbone and name of the arm, as rows have them, and by seed."""
    runs: dict[tuple[str, str, str], dict[int, RunResult]] = defaultdict(dict)
    for run in results:
        runs[run.arm.dataset, run.arm.backbone, run.arm.label][run.seed] = run
    return runs
