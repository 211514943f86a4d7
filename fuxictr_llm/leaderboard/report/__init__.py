"""What a leaderboard shows: evidence, tables, plots. Here are the statistics: spreads, paired gains, Holm's correction.

A gain is the mean of the differences in AUC between two arms at their common seeds. Its 95 % interval is that of the
paired t test and says how sure this one gain is. With one common seed there is a gain, but neither interval nor p;
nor are there any where the difference is exactly the same at all seeds, which then are no independent evidence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from scipy.stats import ttest_rel

LEVEL = 0.05


class Spread(NamedTuple):
    """Mean and sample standard deviation over `n` seeds; one seed has no deviation."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class PairedGain:
    """How much better an arm is than another one at their common seeds.

    Attributes:
        seeds: the common ones.
        mean: of the differences in test AUC.
        low, high: the 95 % interval of the mean, not corrected; None where there is no test.
        p: two-sided, not corrected; None where there is no test.
        corrected: p after Holm's correction; None where there is no test, or no verdict rests on it.
        relative: AUC / AUC of the other - 1, of the means; None where the other's is 0.
        rela_impr: (AUC - 0.5) / (AUC of the other - 0.5) - 1, of the means; None where the other's is 0.5 or less.
    """

    seeds: tuple[int, ...]
    mean: float
    low: float | None
    high: float | None
    p: float | None
    relative: float | None
    rela_impr: float | None
    corrected: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """`low` and `high`; None where there is no test."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def is_better(self) -> bool:
        return self.mean > 0 and self.corrected is not None and self.corrected <= LEVEL

    @property
    def is_worse(self) -> bool:
        return self.mean < 0 and self.corrected is not None and self.corrected <= LEVEL

    @property
    def why_no_test(self) -> str:
        return "one common seed" if len(self.seeds) == 1 else "the same difference at every seed"


def compare(ours: Mapping[int, float], others: Mapping[int, float]) -> PairedGain | None:
    """The gain of one arm over another, seed -> AUC each; None without a common seed."""
    seeds = sorted(ours.keys() & others.keys())
    if not seeds:
        return None
    a, b = [ours[seed] for seed in seeds], [others[seed] for seed in seeds]
    differences = [x - y for x, y in zip(a, b, strict=True)]
    low = high = p = None
    if max(differences) - min(differences) > 1e-12:  # equal ones differ by rounding
        test = ttest_rel(a, b)
        interval = test.confidence_interval(1 - LEVEL)
        low, high, p = float(interval.low), float(interval.high), float(test.pvalue)
    relative = fmean(a) / fmean(b) - 1 if fmean(b) else None
    chance = fmean(b) - 0.5
    rela_impr = (fmean(a) - 0.5) / chance - 1 if chance > 0 else None
    return PairedGain(tuple(seeds), fmean(differences), low, high, p, relative, rela_impr)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979): p values that may be compared with the level as they are.

    The i-th smallest of `m` is multiplied by `m - i + 1`; none becomes smaller than one before it, or larger than 1.
    """
    corrected, so_far = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = so_far
    return corrected
