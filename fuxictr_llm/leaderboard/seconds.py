"""How long the parts of a run took: training, testing, and what a language model was asked."""

from collections.abc import Mapping
from typing import Any

from fuxictr_llm.run_record import seconds_of, total

# Stages that neither train nor test a network, nor have to do with a language model.
OF_DATA = ("prepare data", "build data")
KINDS = ("train", "test", "language_model")


def seconds_by_kind(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of each of KINDS, also of work that the run found done; what is not known is left out.

    `train` is of all networks that the run needs, `language_model` 0 where none was asked.
    """
    kinds: dict[str, list[float | None]] = {kind: [] for kind in KINDS}
    for name, facts in stages.items():
        if name not in OF_DATA:
            kinds[_kind(name)].append(seconds_of(facts))
    if "test" not in stages:
        del kinds["test"]
    found = {kind: total(each) for kind, each in kinds.items()}
    return {kind: seconds for kind, seconds in found.items() if seconds is not None}


def _kind(stage: str) -> str:
    return "train" if stage.partition(" ")[0] == "train" else "test" if stage == "test" else "language_model"
