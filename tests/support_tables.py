"""Made-up results of a leaderboard: arms with the test AUCs that a test wants."""

from collections.abc import Mapping, Sequence

from fuxictr_llm.leaderboard.plan.plan import Arm
from fuxictr_llm.leaderboard.run.results import RunResult

STRANGE = "A_B|c$^{x}<b>&%#~\\*"


def slices(auc: float) -> dict:
    rows = {"unseen": 40, "rare": 400, "middle": 500, "head": 700}
    facts = {"train_rows": [1, 9], "items": 5, "logloss": 0.5}
    return {"by": "item_id", "slices": {name: {**facts, "rows": count, "AUC": auc} for name, count in rows.items()}}


def runs(
    method: str | None,
    control: str | None,
    aucs: Sequence[float] | Mapping[int, float],
    backbone: str = "DeepFM",
    dataset: str = "shop",
    **changes,
) -> list[RunResult]:
    """A run for each AUC, at the seeds 1, 2, ... or those given; `changes` are of the results."""
    by_seed = aucs if isinstance(aucs, Mapping) else dict(enumerate(aucs, 1))
    arm = Arm(backbone, dataset, method, control)
    found = []
    for seed, auc in by_seed.items():
        parts = {
            "metrics": {"valid": {"AUC": auc - 0.01, "logloss": 0.6}, "test": {"AUC": auc, "logloss": 0.5}},
            "slices": slices(auc),
            "seconds": {"train": 10.0 + seed, "test": 0.5, "language_model": 100.0 if method else 0.0},
            "rows": {"test": 1000},
            "parameters": {"backbone": 5000, "method": 70 if method else 0},
            "record": {"versions": {"torch": "2.13.0"}, "data": {"sha256": {"train": ["ab12"], "test": ["cd34"]}}},
        }
        found.append(RunResult(arm, seed, f"{seed}{backbone}{method}{control}", **(parts | changes)))
    return found


def shifted(base: Sequence[float], by: float) -> list[float]:
    """The AUCs of an arm that is surely better by so much: the differences hardly vary."""
    return [auc + by + 1e-5 * (-1) ** index for index, auc in enumerate(base)]
