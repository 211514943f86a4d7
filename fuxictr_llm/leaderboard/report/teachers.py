"""Whether gain networks beat their plain backbones, and how much of that their students have (ELEC), on test rows."""

import statistics
from collections.abc import Mapping, Sequence

from fuxictr_llm.distillation.recovery import Recovery, recovery_of
from fuxictr_llm.leaderboard.report import PairedGain, Repeat, compare
from fuxictr_llm.leaderboard.run.results import RunResult

HEADS = ("backbone", "arm", "gain network over plain", "better on", "student over plain", "recovery")


def lines_of_teachers(dataset: str, results: Sequence[RunResult]) -> list[list[str]]:
    """A line of cells for each backbone and arm whose runs trained a gain network beside a plain one.

    Differences are counted by seed, or by split of the data, of which each is the mean over its seeds. The recovery is
    that of the means, (V - plain) / (G - plain), where the gain network is surely better: its 95 % interval is above 0.
    """
    found: dict[tuple[str, str], dict[Repeat, Recovery]] = {}
    for run in results:
        recovery = _recovery(run) if run.arm.dataset == dataset else None
        if recovery:
            found.setdefault((run.arm.backbone, run.arm.label), {})[run.repeat] = recovery
    lines = []
    for names, by_repeat in found.items():
        gain = _over_zero({repeat: one.gain for repeat, one in by_repeat.items()})
        student = _over_zero({repeat: one.student for repeat, one in by_repeat.items() if one.student is not None})
        if gain:
            lines.append([*names, *_cells(gain, student)])
    return lines


def _recovery(run: RunResult) -> Recovery | None:
    networks = run.record.get("networks") or {}
    names: Mapping[str, float] = run.metrics.get("test") or {}
    return recovery_of(networks, "test", list(names), run.metrics) if names else None


def _cells(gain: PairedGain, student: PairedGain | None) -> list[str]:
    differences = gain.differences.values()
    better = f"{sum(difference > 0 for difference in differences)} of {len(differences)} {gain.unit}s"
    share = f"{student.mean / gain.mean:.0%}" if student and gain.low is not None and gain.low > 0 else "-"
    return [_spread(gain), better, _spread(student) if student else "-", share]


def _over_zero(differences: Mapping[Repeat, float]) -> PairedGain | None:
    """Differences to the plain network as a gain: of splits, the mean over the seeds of each."""
    return compare(differences, dict.fromkeys(differences, 0.0))


def _spread(gain: PairedGain) -> str:
    differences = gain.differences.values()
    deviation = f" ± {statistics.stdev(differences):.5f}" if len(differences) > 1 else ""
    return f"{gain.mean:+.5f}{deviation}"
