"""What a leaderboard shows: evidence, tables, plots. Here are the statistics: spreads, paired gains, Holm's correction.

A gain is the mean of the differences in AUC between two arms at their common seeds; where a plan splits the data anew,
at the common splits, of each the mean over its seeds: seeds on one split share its rows, and are no independent
evidence. Its 95 % interval is that of the paired t test and says how sure this one gain is. With one common seed there
is a gain, but neither interval nor p; nor are there any where the difference is exactly the same at all seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import NamedTuple

from scipy.special import stdtr, stdtrit

LEVEL = 0.05
Repeat = int | tuple[int, int]  # of an arm: a seed, or a split of the data and a seed


class Spread(NamedTuple):
    """Mean and sample standard deviation over `n` seeds; one seed has no deviation."""

    mean: float
    sd: float | None
    n: int


@dataclass(frozen=True)
class PairedGain:
    """How much better an arm is than another one at their common seeds.

    Attributes:
        seeds: the common ones, or the common pairs of split and seed.
        differences: in test AUC, by seed or (means over its seeds) by split: what is averaged and tested.
        mean: of the differences.
        low, high: the 95 % interval of the mean, two-sided; None where there is no test.
        p: one-sided, that the arm is no better; not corrected. None where there is no test.
        relative: AUC / AUC of the other - 1, of the means; None where the other's is 0.
        rela_impr: (AUC - 0.5) / (AUC of the other - 0.5) - 1, of the means; None where the other's is 0.5 or less.
        overlap: as in `compare`.
    """

    seeds: tuple[Repeat, ...]
    mean: float
    low: float | None
    high: float | None
    p: float | None
    relative: float | None
    rela_impr: float | None
    differences: Mapping[int, float] = field(default_factory=dict, repr=False)
    overlap: float = 0.0

    @property
    def interval(self) -> tuple[float, float] | None:
        """`low` and `high`; None where there is no test."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def unit(self) -> str:
        """What is counted as one piece of evidence: `seed` or `split`."""
        return "split" if self.seeds and isinstance(self.seeds[0], tuple) else "seed"

    @property
    def why_no_test(self) -> str:
        return f"one common {self.unit}" if len(self.differences) == 1 else f"the same difference at every {self.unit}"


def compare(ours: Mapping[Repeat, float], others: Mapping[Repeat, float], overlap: float = 0.0) -> PairedGain | None:
    """The gain of one arm over another, seed (or split and seed) -> AUC each; None without a common one.

    Args:
        overlap: of several splits, test rows / train rows. Their train rows overlap, so that the mean of n differences
            of variance s² has the variance (1/n + overlap) s²: the corrected resampled t test (Nadeau and Bengio,
            "Inference for the Generalization Error", Machine Learning 52, 2003).
    """
    seeds = sorted(ours.keys() & others.keys())
    if not seeds:
        return None
    a, b = [ours[seed] for seed in seeds], [others[seed] for seed in seeds]
    by_unit: dict[int, list[float]] = {}
    for seed, x, y in zip(seeds, a, b, strict=True):
        by_unit.setdefault(seed[0] if isinstance(seed, tuple) else seed, []).append(x - y)
    differences = {unit: fmean(values) for unit, values in by_unit.items()}
    mean, low, high, p = fmean(differences.values()), None, None, None
    if max(differences.values()) - min(differences.values()) > 1e-12:  # equal ones differ by rounding
        # Student's distribution without the overhead of scipy.stats, which takes most of a simulation's time.
        n = len(differences)
        error = stdev(differences.values()) * math.sqrt(1 / n + overlap)
        half = float(stdtrit(n - 1, 1 - LEVEL / 2)) * error
        low, high, p = mean - half, mean + half, float(stdtr(n - 1, -mean / error))
    relative = fmean(a) / fmean(b) - 1 if fmean(b) else None
    chance = fmean(b) - 0.5
    rela_impr = (fmean(a) - 0.5) / chance - 1 if chance > 0 else None
    return PairedGain(tuple(seeds), mean, low, high, p, relative, rela_impr, differences, overlap)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (Holm 1979): p values that may be compared with the level as they are.

    The i-th smallest of `m` is multiplied by `m - i + 1`; none becomes smaller than one before it, or larger than 1.
    """
    corrected, so_far = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = so_far
    return corrected
