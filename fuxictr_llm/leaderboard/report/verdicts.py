"""Verdicts: proven is what is better than plain and than each control.

That is an intersection-union test (Berger 1982): the p value of the whole claim is the largest of its comparisons, each
one-sided and paired by seed, without a correction among them. Over the rows of a table Holm corrects.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from fuxictr_llm.leaderboard.report import LEVEL, PairedGain, holm

PROVEN, PLACEBO, WORSE, UNPROVEN = "proven", "placebo does as well", "worse", "unproven"
VERDICTS = (PROVEN, PLACEBO, WORSE, UNPROVEN)
FEWEST_SEEDS = 5  # fewer differences do not show whether they are normally distributed, as the t test assumes
ONLY_BEFORE = "significant only before Holm's correction"
NOTHING_PROVEN = "nothing can be proven"


@dataclass(frozen=True)
class Claim:
    """That a method gains: its gains over plain and over each control that it declares.

    Attributes:
        over_plain, over_controls: None where there is no seed in common.
        missing: control -> why there is no gain over it, where more can be said than that it has no finished run.
    """

    over_plain: PairedGain | None
    over_controls: Mapping[str, PairedGain | None]
    missing: Mapping[str, str] = field(default_factory=dict)

    @property
    def comparisons(self) -> dict[str, PairedGain | None]:
        return {"plain": self.over_plain, **self.over_controls}

    @property
    def p(self) -> float | None:
        """Of the intersection-union test; None where a comparison is missing, or there are no controls."""
        p_values = [gain.p for gain in self.comparisons.values() if gain is not None and gain.p is not None]
        return max(p_values) if self.over_controls and len(p_values) == len(self.comparisons) else None


@dataclass(frozen=True)
class Verdict:
    """One of VERDICTS, what it rests on, and the p value of the claim after the correction (None: no test)."""

    kind: str
    why: str
    p: float | None = None


def judge(claims: Sequence[Claim]) -> list[Verdict]:
    """The verdicts on claims that are read together, as the rows of a table; on a single one nothing is corrected.

    Holm corrects "proven", "better than plain" and "worse than plain" over the claims, each of the three for itself.
    """
    gains = [claim.over_plain.p if claim.over_plain else None for claim in claims]
    proven = _corrected([claim.p for claim in claims])
    better = _corrected(gains)
    worse = _corrected([None if p is None else 1 - p for p in gains])
    return [
        Verdict(*_verdict(claim, *p_values), p_values[0])
        for claim, *p_values in zip(claims, proven, better, worse, strict=True)
    ]


def _corrected(p_values: Sequence[float | None]) -> list[float | None]:
    corrected = iter(holm([p for p in p_values if p is not None]))
    return [None if p is None else next(corrected) for p in p_values]


def _verdict(claim: Claim, proven: float | None, better: float | None, worse: float | None) -> tuple[str, str]:
    gain, controls = claim.over_plain, claim.over_controls
    if gain is None:
        return UNPROVEN, "no run of the plain backbone at these seeds"
    if gain.p is None:
        return UNPROVEN, gain.why_no_test
    if (few := len(gain.differences)) < FEWEST_SEEDS:
        return UNPROVEN, f"{few} {gain.unit}s; a verdict needs {FEWEST_SEEDS}"
    if _is_sure(worse):
        return WORSE, "than the plain backbone"
    missing = _missing(claim)
    if not _is_sure(better):
        return UNPROVEN, (ONLY_BEFORE if gain.p <= LEVEL else f"within the noise of {gain.unit}s") + missing
    if as_good := [name for name, over in controls.items() if over and _does_as_well(over)]:
        return PLACEBO, f"not surely better than {', '.join(as_good)}{missing}"
    if missing:
        return UNPROVEN, "better than plain" + missing
    if not _is_sure(proven):
        return UNPROVEN, f"better than plain; than the controls {ONLY_BEFORE}"
    return PROVEN, "better than plain and than " + ", ".join(controls)


def _is_sure(p: float | None) -> bool:
    return p is not None and p <= LEVEL


def _does_as_well(over: PairedGain) -> bool:
    """Whether the control is as good as the method as far as all the seeds that a verdict needs can tell."""
    if over.p is None:  # the same difference at every seed
        return len(over.differences) > 1 and over.mean <= 0
    return over.p > LEVEL and len(over.differences) >= FEWEST_SEEDS


def _missing(claim: Claim) -> str:
    """Which controls are missing; empty where there are all."""
    if not claim.over_controls:
        return f"; it has no controls: {NOTHING_PROVEN}"
    if not any(claim.over_controls.values()) and not claim.missing:
        return f"; no controls run ({', '.join(claim.over_controls)}): {NOTHING_PROVEN}"
    reasons = {name: claim.missing.get(name) or _why_open(over) for name, over in claim.over_controls.items()}
    named = ", ".join(f"{name} ({why})" for name, why in reasons.items() if why)
    return f"; control {named}: {NOTHING_PROVEN}" if named else ""


def _why_open(over: PairedGain | None) -> str:
    """Why the comparison with a control decides nothing; empty where it does."""
    if over is None:
        return "no finished run"
    if over.p is None:
        return "" if _does_as_well(over) else over.why_no_test
    few = len(over.differences)
    return f"{few} {over.unit}s of {FEWEST_SEEDS}" if few < FEWEST_SEEDS else ""


def compared_at(claim: Claim, seeds: Iterable[object]) -> str:
    """A note on the comparisons at fewer seeds than those given; empty where there are none."""
    seeds, note = tuple(seeds), ""
    for name, gain in claim.comparisons.items():
        if gain and gain.seeds != seeds:
            note += f"; compared with {name} at {gain.unit} {', '.join(map(str, gain.differences))} only"
    return note
