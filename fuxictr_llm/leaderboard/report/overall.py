"""The primary result of a table: a verdict on each method over all backbones of a data set.

The differences are averaged over the backbones at each seed, and tested over the seeds. The backbones are those of the
table and no sample of others; what runs at one seed has in common over backbones (a placebo's draw, what a language
model was asked) is inside each difference. A mixed model with random backbones would speak of backbones at large, for
which four or eight are too few, and its Wald tests are too sure with so few groups.
"""

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from fuxictr_llm.leaderboard.plan.plan import PLAIN
from fuxictr_llm.leaderboard.report import PairedGain, Repeat, compare
from fuxictr_llm.leaderboard.report.evidence import ArmRow, aucs_of, overlap_of
from fuxictr_llm.leaderboard.report.verdicts import (
    NOTHING_PROVEN,
    UNPROVEN,
    VERDICTS,
    Claim,
    Verdict,
    compared_at,
    judge,
)
from fuxictr_llm.leaderboard.run.results import RunResult

Runs = Mapping[tuple[str, str, str], Mapping[Repeat, RunResult]]  # data set, backbone, name of the arm -> seed -> run
ValuesOf = Callable[[Mapping[Repeat, RunResult]], Mapping[Repeat, float]]


@dataclass(frozen=True)
class Overall:
    """An arm over the backbones on which it and the plain one have a seed in common.

    Attributes:
        arm: as in `ArmRow`.
        backbones: their names; the arm's other backbones do not count here.
        better: on how many of them its mean is above the plain one's.
        gain: of the AUC averaged over the backbones, at the seeds that all of them have. None where they have none in
            common.
        over_control: of a control, what its method gains over it, likewise; None for a method.
        claim: of a method, what its verdict is on.
        verdict: of a method; nothing is corrected.
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
    claim: Claim | None
    verdict: Verdict | None
    verdicts: Mapping[str, int]


def over_backbones(rows: Sequence[ArmRow], results: Iterable[RunResult]) -> list[Overall]:
    """A line for every method and control of a data set, in the order of the rows."""
    runs, lines = runs_by_row(results), []
    arms = dict.fromkeys((row.dataset, row.arm, row.method, row.control) for row in rows if row.method)
    for dataset, arm, method, control in arms:
        arm_rows = [row for row in rows if (row.dataset, row.arm) == (dataset, arm)]
        compared = [row for row in arm_rows if row.over_plain]
        gain = mean_gain(compared, runs, aucs_of)
        claim = verdict = over_control = None
        if control:
            method_rows = [row for row in rows if (row.dataset, row.method) == (dataset, method)]
            over_control = _over_control(method_rows, runs, control)
        else:
            failed = {row.control for row in rows if _is_failed_control_of(row, arm_rows[0])}
            claim = _claim(arm_rows, runs, gain, failed)
            verdict = _verdict(arm_rows, claim)
        lines.append(
            Overall(
                dataset,
                arm,
                method,
                control,
                tuple(row.backbone for row in compared),
                sum(row.over_plain.mean > 0 for row in compared if row.over_plain),
                gain,
                over_control,
                claim,
                verdict,
                {kind: sum(row.verdict == kind for row in arm_rows) for kind in VERDICTS if not control},
            )
        )
    return lines


def _over_control(rows: Sequence[ArmRow], runs: Runs, control: str) -> PairedGain | None:
    """What a method gains over a control on those of its rows that have it."""
    judged = [row for row in rows if row.over_controls.get(control)]
    return mean_gain(judged, runs, aucs_of, over=f"{judged[0].method} {control}") if judged else None


def _is_failed_control_of(row: ArmRow, method: ArmRow) -> bool:
    is_control = row.control is not None and (row.dataset, row.method) == (method.dataset, method.method)
    return is_control and bool(row.failed) and not row.seeds


def _claim(rows: Sequence[ArmRow], runs: Runs, gain: PairedGain | None, failed: Container[str | None]) -> Claim:
    """That the method of the rows gains over all their backbones; a control that one of them lacks is missing.

    Args:
        failed: the controls that failed on a backbone.
    """
    names = dict.fromkeys(name for row in rows for name in row.over_controls)
    lacking = {name: [row.backbone for row in rows if not row.over_controls.get(name)] for name in names}
    missing = {
        name: f"{'failed' if name in failed else 'no run'} on {', '.join(backbones)}"
        for name, backbones in lacking.items()
        if 0 < len(backbones) < len(rows) or (backbones and name in failed)
    }
    over = {name: None if lacking[name] else _over_control(rows, runs, name) for name in names}
    missing |= {name: "no seed in common" for name, found in over.items() if found is None and not lacking[name]}
    return Claim(gain, over, missing)


def _verdict(rows: Sequence[ArmRow], claim: Claim) -> Verdict:
    if without := [row.backbone for row in rows if not row.over_plain]:
        return Verdict(UNPROVEN, f"not compared with plain on {', '.join(without)}: {NOTHING_PROVEN}")
    if claim.over_plain is None:
        return Verdict(UNPROVEN, f"no seed that all backbones have: {NOTHING_PROVEN}")
    (verdict,) = judge([claim])
    seeds = max((row.seeds for row in rows), key=len)
    return Verdict(verdict.kind, verdict.why + compared_at(claim, seeds), verdict.p)


def mean_gain(rows: Sequence[ArmRow], runs: Runs, values_of: ValuesOf, over: str = PLAIN) -> PairedGain | None:
    """The gain over another arm of a value averaged over the backbones of the rows, at the seeds that all of them have.

    Args:
        rows: of one arm on one data set.
        runs: from `runs_by_row`.
        values_of: seed -> run to seed -> value.
        over: the other arm.
    """
    arms = [runs[row.dataset, row.backbone, arm] for row in rows for arm in (row.arm, over)]
    ours = [values_of(runs[row.dataset, row.backbone, row.arm]) for row in rows]
    others = [values_of(runs[row.dataset, row.backbone, over]) for row in rows]
    seeds = set.intersection(*(set(values) for values in [*ours, *others])) if rows else set()
    our_means, other_means = ({seed: fmean(values[seed] for values in arm) for seed in seeds} for arm in (ours, others))
    return compare(our_means, other_means, overlap_of(run for by_seed in arms for run in by_seed.values()))


def runs_by_row(results: Iterable[RunResult]) -> Runs:
    """The runs by data set, backbone and name of the arm, as rows have them, and by seed."""
    runs: dict[tuple[str, str, str], dict[Repeat, RunResult]] = defaultdict(dict)
    for run in results:
        runs[run.arm.dataset, run.arm.backbone, run.arm.label][run.repeat] = run
    return runs
