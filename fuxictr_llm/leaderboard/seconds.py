"""How long the parts of a run took: training, testing, and what a language model was asked."""

from collections.abc import Iterable, Mapping
from typing import Any

from fuxictr_llm.leaderboard.plan import PlannedRun

# Stages that neither train nor test a network, nor have to do with a language model.
OF_DATA = ("prepare data", "build data")


class Seconds:
    """How long stages took, as the run measured them that had to do the work; others found it done."""

    def __init__(self, runs: Iterable[tuple[PlannedRun, Mapping[str, Any]]]):
        self._measured: dict[tuple, float] = {}
        for run, record in runs:
            for name, facts in record["stages"].items():
                if not facts.get("cached"):
                    key = self._key(run, name)
                    self._measured[key] = max(self._measured.get(key, 0.0), facts["seconds"])

    def of(self, run: PlannedRun, record: Mapping[str, Any]) -> dict[str, float]:
        """Seconds by kind of work."""
        stages = record["stages"]
        found = {"train": stages["train"]["seconds"]}
        for name in stages:
            if name.startswith("train "):  # a network on the way to the run's own
                found["train"] += self._measured.get(self._key(run, name), 0.0)
        if "test" in stages:
            found["test"] = stages["test"]["seconds"]
        asked = [self._key(run, name) for name in stages if _kind(name) == "language_model"]
        if not asked:
            found["language_model"] = 0.0
        elif all(key in self._measured for key in asked):
            of_model = [value for key, value in self._measured.items() if key[0] == run.language_model]
            found["language_model"] = round(sum(of_model), 3)
        return found

    def _key(self, run: PlannedRun, stage: str) -> tuple:
        if _kind(stage) == "language_model":
            return (run.language_model, stage)
        return (run.arm.dataset, run.arm.backbone, run.seed, stage)


def _kind(stage: str) -> str:
    if stage in OF_DATA:
        return "data"
    return "train" if stage.partition(" ")[0] == "train" else "test" if stage == "test" else "language_model"
