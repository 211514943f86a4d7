"""The gain of an arm over all backbones of a data set, as the gain on one is small beside the noise of its seeds."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from fuxictr_llm.leaderboard.plan.plan import PLAIN
from fuxictr_llm.leaderboard.report import PairedGain, compare
from fuxictr_llm.leaderboard.report.evidence import VERDICTS, ArmRow, aucs_of
from fuxictr_llm.leaderboard.run.results import RunResult

Runs = Mapping[tuple[str, str, str], Mapping[int, RunResult]]  # data set, backbone, name of the arm -> seed -> run
ValuesOf = Callable[[Mapping[int, RunResult]], Mapping[int, float]]


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
