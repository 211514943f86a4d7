"""Whether gain networks beat their plain backbones, and how much of that their students have (ELEC), on test rows."""

import statistics
from collections.abc import Mapping, Sequence

from fuxictr_llm.distillation.recovery import Recovery, recovery_of
from fuxictr_llm.leaderboard.run.results import RunResult

HEADS = ("backbone", "arm", "gain network over plain", "better on", "student over plain", "recovery")


def lines_of_teachers(dataset: str, results: Sequence[RunResult]) -> list[list[str]]:
    """A line of cells for each backbone and arm whose runs trained a gain network beside a plain one.

    The recovery is that of the means, (V - plain) / (G - plain), where the gain network is better in the mean.
    """
    found: dict[tuple[str, str], list[Recovery]] = {}
    for run in results:
        recovery = _recovery(run) if run.arm.dataset == dataset else None
        if recovery:
            found.setdefault((run.arm.backbone, run.arm.label), []).append(recovery)
    return [[*names, *_cells(several)] for names, several in found.items()]


def _recovery(run: RunResult) -> Recovery | None:
    networks = run.record.get("networks") or {}
    names: Mapping[str, float] = run.metrics.get("test") or {}
    return recovery_of(networks, "test", list(names), run.metrics) if names else None


def _cells(several: Sequence[Recovery]) -> list[str]:
    gains = [one.gain for one in several]
    students = [one.student for one in several if one.student is not None]
    mean = statistics.mean(gains)
    better = f"{sum(gain > 0 for gain in gains)} of {len(gains)} seeds"
    share = f"{statistics.mean(students) / mean:.0%}" if students and mean > 0 else "-"
    return [_spread(gains), better, _spread(students) if students else "-", share]


def _spread(differences: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(differences):.5f}" if len(differences) > 1 else ""
    return f"{statistics.mean(differences):+.5f}{deviation}"
