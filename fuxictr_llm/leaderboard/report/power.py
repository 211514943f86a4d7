"""What a table could have shown, and how many seeds would show a gain: by the spread of a pilot's differences.

A claim is proven where each of its comparisons is (`verdicts`), and these have the method's runs in common. So the
power is simulated: differences are drawn from the normal distribution with the pilot's covariance, all with the same
mean, the gain over plain and over each control. Of a single comparison it is that of the noncentral t distribution. On
a row Holm's correction counts as m rows of which this one alone gains: its level is LEVEL / m.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.leaderboard.report import LEVEL
from fuxictr_llm.leaderboard.report.evidence import ArmRow
from fuxictr_llm.leaderboard.report.overall import Overall
from fuxictr_llm.leaderboard.report.verdicts import FEWEST_SEEDS, Claim

POWER, DRAWS, SEED = 0.8, 4000, 2024
MOST_SEEDS = 100


class Pilot(NamedTuple):
    """What is known of a claim's differences.

    Attributes:
        covariance: of the claim's comparisons, `[C, C]`.
        n: seeds (or splits) that all of them have.
        overlap: as in `compare`.
        level: at which the claim's p counts as small.
        unit: `seed` or `split`.
    """

    covariance: np.ndarray
    n: int
    overlap: float
    level: float
    unit: str

    def power(self, gain: float, n: int) -> float:
        """The probability that n seeds prove a gain of that size."""
        return float(np.mean(gain_needed(self.covariance, n, self.level, self.overlap) <= gain))

    def smallest_gain(self) -> float:
        """The gain that the pilot's own seeds would have proven with the probability POWER."""
        return float(np.quantile(gain_needed(self.covariance, self.n, self.level, self.overlap), POWER))

    def seeds_for(self, gain: float) -> int | None:
        """The fewest seeds that prove a gain of that size with the probability POWER; None: more than MOST_SEEDS."""
        low, high = FEWEST_SEEDS - 1, FEWEST_SEEDS
        while self.power(gain, high) < POWER:
            if high == MOST_SEEDS:
                return None
            low, high = high, min(2 * high, MOST_SEEDS)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.power(gain, middle) >= POWER else (middle, high)
        return high


def pilot_of(claim: Claim | None, level: float) -> Pilot | None:
    """The pilot that a claim's comparisons are; None where one is missing, or has less than two seeds or no spread."""
    if claim is None or claim.p is None:
        return None
    gains = [gain for gain in claim.comparisons.values() if gain is not None]
    units = sorted(set.intersection(*(set(gain.differences) for gain in gains)))
    if len(units) < 2:
        return None
    differences = np.array([[gain.differences[unit] for unit in units] for gain in gains])
    return Pilot(np.atleast_2d(np.cov(differences)), len(units), gains[0].overlap, level, gains[0].unit)


def gain_needed(covariance: np.ndarray, n: int, level: float, overlap: float = 0.0) -> np.ndarray:
    """Simulated experiments of n seeds: the gain from which on each would have proven the claim, float64 `[DRAWS]`."""
    values, vectors = np.linalg.eigh(covariance)
    root = vectors * np.sqrt(values.clip(min=0))
    drawn = np.random.default_rng([SEED, n]).standard_normal((DRAWS, n, len(covariance))) @ root.T
    error = math.sqrt(1 / n + overlap)
    means = drawn.mean(axis=1) * math.sqrt(n) * error
    return (t.isf(level, n - 1) * error * drawn.std(axis=1, ddof=1) - means).max(axis=1)


def pilots_of_rows(rows: Sequence[ArmRow]) -> dict[tuple[str, str, str], Pilot]:
    """The pilots of the methods' rows, by data set, backbone and arm."""
    tested = [row for row in rows if row.is_method and row.claim.p is not None]
    pilots = {}
    for row in tested:
        level = LEVEL / sum(other.dataset == row.dataset for other in tested)
        if pilot := pilot_of(row.claim, level):
            pilots[row.dataset, row.backbone, row.arm] = pilot
    return pilots


def power_lines(gain: float, rows: Sequence[ArmRow], overall: Iterable[Overall]) -> list[str]:
    """What `--power` says, a line each.

    Raises:
        UserError: there is no pilot.
    """
    of_rows = pilots_of_rows(rows)
    several = [line for line in overall if line.claim and len(line.backbones) > 1]
    methods = {(line.dataset, line.method): pilot_of(line.claim, LEVEL) for line in several}
    if not of_rows and not any(methods.values()):
        raise UserError(
            "--power needs a pilot: no method has finished runs at two seeds together with plain and each of its "
            "controls; run a few seeds with --controls first"
        )
    lines = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        lines.append(
            f"{dataset}: seeds that prove a gain of {gain:+.5f} AUC over plain and over each control with "
            f"{POWER:.0%} power; the spread is that of the runs that are there"
        )
        for (of, method), pilot in methods.items():
            if of == dataset:
                lines.append(f"  {method} over all backbones: {_line(pilot, gain)}")
        own = {key: of_rows.get(key) for key in _keys(rows, dataset)}
        lines += [f"  {backbone} {arm}: {_line(pilot, gain)}" for (_, backbone, arm), pilot in own.items()]
    return lines


def _keys(rows: Iterable[ArmRow], dataset: str) -> list[tuple[str, str, str]]:
    return [(row.dataset, row.backbone, row.arm) for row in rows if row.is_method and row.dataset == dataset]


def _line(pilot: Pilot | None, gain: float) -> str:
    if pilot is None:
        return "no pilot: plain or a control is missing, or there are less than two common seeds"
    needed = pilot.seeds_for(gain)
    count = f"more than {MOST_SEEDS} {pilot.unit}s" if needed is None else f"{needed} {pilot.unit}s"
    now = f"{pilot.n} {pilot.unit}s"
    if pilot.n < FEWEST_SEEDS:
        return f"{count} ({now} prove nothing: a verdict needs {FEWEST_SEEDS})"
    return (
        f"{count} ({now}: {pilot.power(gain, pilot.n):.0%}, or a gain of {pilot.smallest_gain():+.5f} with {POWER:.0%})"
    )


def could_show(pilots: Iterable[Pilot | None]) -> str:
    """The smallest gains that claims could have shown, as a number or a range; empty without a pilot."""
    gains = [pilot.smallest_gain() for pilot in pilots if pilot and pilot.n >= FEWEST_SEEDS]
    return " to ".join(dict.fromkeys(f"{gain:+.5f}" for gain in (min(gains), max(gains)))) if gains else ""
