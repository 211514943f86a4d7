"""A run under way: its settings, its data, the times of its stages, and the versions it depends on."""

import contextlib
import logging
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fuxictr.features import FeatureMap

AFFECTS_RESULTS = False  # see common/code_digest.py


class Stages:
    """Seconds, rows and rows per second of each stage of a run, in order."""

    def __init__(self) -> None:
        self.done: dict[str, dict[str, Any]] = {}

    @contextlib.contextmanager
    def __call__(self, name: str, **facts: Any) -> Iterator[dict[str, Any]]:
        """Time the block as the stage `name`. Yields its facts: set `rows` there to get rows per second.

        What was found done is `cached`. Where some was, `made_in` are the seconds that all of it took, whenever that
        was (None: not known).
        """
        start = time.perf_counter()
        yield facts
        facts["seconds"] = round(time.perf_counter() - start, 3)
        if facts.get("rows") and facts["seconds"]:
            facts["rows_per_second"] = round(facts["rows"] / facts["seconds"], 1)
        self.done[name] = facts
        logging.info("Stage %r: %s", name, _told(facts))

    def __str__(self) -> str:
        return ", ".join(f"{name} {_told(facts)}" for name, facts in self.done.items())


@dataclass
class Run:
    """An experiment under way. Methods get it to prepare themselves (`Enhancement.prepare`).

    Attributes:
        params: the settings, with built files in place of raw ones.
        data_dir: the folder of the built data set.
        feature_map: FuxiCTR's description of its columns.
        stages: times of what was done.
        notes: what a method wants in the run record.
        networks: how the networks did that were trained on the way to the run's own, by name.
        prepared: what a method's `prepare` leaves for its `on_train_begin`.
    """

    params: dict[str, Any]
    data_dir: Path
    feature_map: FeatureMap
    stages: Stages
    notes: dict[str, Any] = field(default_factory=dict)
    networks: dict[str, dict[str, Any]] = field(default_factory=dict)
    prepared: Any = None


# Some of them only because a row of BARS lists them.
PACKAGES = ("fuxictr-llm", "fuxictr", "torch", "transformers", "peft", "polars", "numpy", "ray", "pandas", "scipy")
PACKAGES += ("scikit-learn", "pyyaml", "h5py", "tqdm")


def seconds_of(stage: Mapping[str, Any]) -> float | None:
    """How long a stage's work took, also where runs before did it, or part of it; None where that is not known."""
    return stage.get("made_in", None if stage.get("cached") else stage["seconds"])


def total(seconds: Iterable[float | None]) -> float | None:
    """The sum; None where one is not known."""
    seconds = list(seconds)
    return None if None in seconds else round(sum(seconds), 3)


def _told(facts: Mapping[str, Any]) -> str:
    return "cached" if facts.get("cached") else f"{facts['seconds']:.1f} s"


def versions() -> dict[str, str]:
    """Of Python and the packages that a result depends on."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
