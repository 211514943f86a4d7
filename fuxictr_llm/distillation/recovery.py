"""How much of what a gain network gains over its plain backbone the student that serves has: its recovery."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

AFFECTS_RESULTS = False  # see common/code_digest.py

LOSSES = ("logloss", "binary_crossentropy")  # better where they are lower


@dataclass(frozen=True)
class Recovery:
    """Differences to the plain backbone on one split; positive where a network is better.

    Attributes:
        metric: which.
        gain: the gain network's.
        student: the student's; None where it is not known yet.
    """

    metric: str
    gain: float
    student: float | None = None

    @property
    def share(self) -> float | None:
        """(V - plain) / (G - plain), where the gain network is better than the plain backbone."""
        return None if self.student is None or self.gain <= 0 else self.student / self.gain

    def __str__(self) -> str:
        text = f"gain network over plain {self.gain:+.6f} {self.metric}"
        if self.student is None:
            return text
        share = "; no gain to recover" if self.share is None else f" (recovery {self.share:.0%})"
        return f"{text}, student {self.student:+.6f}{share}"


def recovery_of(
    networks: Mapping[str, Mapping[str, Any]],
    split: str,
    metrics: Sequence[str],
    student: Mapping[str, Any] | None = None,
) -> Recovery | None:
    """Of a run's networks, by AUC or else the first of the metrics; None where one of the two was not measured.

    Args:
        networks: name -> facts with `metrics` by split; `plain` and `gain` are compared.
        split: `valid` or `test`.
        metrics: the run's.
        student: its metrics by split.
    """
    metric = "AUC" if "AUC" in metrics else metrics[0]
    sign = -1 if metric in LOSSES else 1
    measured = [
        ((networks.get(name) or {}).get("metrics") or {}).get(split, {}).get(metric) for name in ("plain", "gain")
    ]
    plain, gain = measured
    if plain is None or gain is None:
        return None
    own = None if student is None else student.get(split, {}).get(metric)
    return Recovery(metric, sign * (gain - plain), None if own is None else sign * (own - plain))
