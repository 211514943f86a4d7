"""What an arm does over all backbones of a data set: single gains are small beside the noise of their seeds."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from fuxictr_llm.leaderboard.plan.plan import PLAIN
from fuxictr_llm.leaderboard.report.evidence import VERDICTS, Row, aucs_of
from fuxictr_llm.leaderboard.report.gains import Gain, compare
from fuxictr_llm.leaderboard.run.results import RunResult

Runs = Mapping[tuple[str, str, str], Mapping[int, RunResult]]  # data set, backbone, name of the arm -> seed -> run
ValuesOf = Callable[[Mapping[int, RunResult]], Mapping[int, float]]


@dataclass(frozen=True)
class Overall:
    """An arm over the backbones on which it and the plain one have a seed in common.

    Attributes:
        arm: as in `Row`.
        backbones: their names; of the arm's other backbones nothing is in here.
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
    gain: Gain | None
    over_control: Gain | None
    verdicts: Mapping[str, int]


def over_backbones(rows: Sequence[Row], results: Iterable[RunResult]) -> list[Overall]:
    """A line for every method and control of a data set, in the order of the rows."""
    runs, found = runs_by_row(results), []
    arms = dict.fromkeys((row.dataset, row.arm, row.method, row.control) for row in rows if row.method)
    for dataset, arm, method, control in arms:
        all_of = [row for row in rows if (row.dataset, row.arm) == (dataset, arm)]
        compared = [row for row in all_of if row.over_plain]
        of_method = [row for row in rows if (row.dataset, row.method) == (dataset, method)]
        judged = [row for row in of_method if row.over_controls.get(control)]
        found.append(
            Overall(
                dataset,
                arm,
                method,
                control,
                tuple(row.backbone for row in compared),
                sum(row.over_plain.mean > 0 for row in compared),
                mean_gain(compared, runs, aucs_of),
                mean_gain(judged, runs, aucs_of, over=arm) if control else None,
                {verdict: sum(row.verdict == verdict for row in all_of) for verdict in VERDICTS if not control},
            )
        )
    return found


def mean_gain(rows: Sequence[Row], runs: Runs, values_of: ValuesOf, over: str = PLAIN) -> Gain | None:
    """The gain over another arm of a value averaged over the backbones of the rows, at the seeds that all of them have.

    Args:
        rows: of one arm on one data set.
        runs: from `runs_by_row`.
        values_of: seed -> run to seed -> value.
        over: the other arm.
    """
    ours = [values_of(runs[row.dataset, row.backbone, row.arm]) for row in rows]
    others = [values_of(runs[row.dataset, row.backbone, over]) for row in rows]
    seeds = set.intersection(*(set(of) for of in [*ours, *others])) if rows else set()
    return compare(*({seed: fmean(of[seed] for of in arm) for seed in seeds} for arm in (ours, others)))


def runs_by_row(results: Iterable[RunResult]) -> Runs:
    """The runs, to be found by what a row says."""
    runs: dict[tuple[str, str, str], dict[int, RunResult]] = defaultdict(dict)
    for run in results:
        runs[run.arm.dataset, run.arm.backbone, run.arm.label][run.seed] = run
    return runs
