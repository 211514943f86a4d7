"""What is known of a run while it is in progress: settings, data, the times of its stages, package versions."""

import contextlib
import functools
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
# Some only because BARS lists them.
PACKAGES = (
    *("fuxictr-llm", "fuxictr", "torch", "transformers", "peft", "polars", "numpy", "ray", "pandas", "scipy"),
    *("scikit-learn", "pyyaml", "h5py", "tqdm"),
)
# Stages that neither train nor test a network, nor have to do with a language model.
DATA_STAGES = ("prepare data", "build data")
KINDS = ("train", "test", "language_model")


class Stages:
    """Seconds, rows and rows per second of each stage of a run, in order."""

    def __init__(self) -> None:
        self.done: dict[str, dict[str, Any]] = {}

    @contextlib.contextmanager
    def __call__(self, name: str, **facts: Any) -> Iterator[dict[str, Any]]:
        """Time the block as the stage `name`; yields its facts.

        Facts that the block may set: `rows`, to get rows per second; `cached: True` where nothing had to be computed;
        `made_in`, the seconds that the work took in all, earlier runs included (None: not known); `tokens_read` and
        `tokens_written`, what a language model read and wrote for it, likewise.
        """
        start = time.perf_counter()
        yield facts
        facts["seconds"] = round(time.perf_counter() - start, 3)
        if facts.get("rows") and facts["seconds"]:
            facts["rows_per_second"] = round(facts["rows"] / facts["seconds"], 1)
        self.done[name] = facts
        logging.info("Stage %r: %s", name, _duration(facts))

    def __str__(self) -> str:
        return ", ".join(f"{name} {_duration(facts)}" for name, facts in self.done.items())


@dataclass
class Run:
    """An experiment in progress, as methods, loaders and language models get it.

    Attributes:
        params: the settings, with the built files in place of the raw ones.
        data_dir: the folder of the built data set.
        feature_map: FuxiCTR's description of its columns.
        stages: times of what was done.
        notes: what goes into the run record besides its usual entries.
        networks: name -> metrics of a network that was trained for the run, a teacher for example.
        prepared: what a method's `prepare` leaves for its `on_train_begin`.
        raw: the settings as the config has them, with the raw files.
        cold: the values outside train's vocabulary that get embeddings after training (llm/vectors/cold.py), or None.
    """

    params: dict[str, Any]
    data_dir: Path
    feature_map: FeatureMap
    stages: Stages
    notes: dict[str, Any] = field(default_factory=dict)
    networks: dict[str, dict[str, Any]] = field(default_factory=dict)
    prepared: Any = None
    raw: dict[str, Any] = field(default_factory=dict)
    cold: Any = None


def seconds_of(stage: Mapping[str, Any]) -> float | None:
    """How long a stage's work took, the part done in earlier runs included; None where that is not known."""
    return stage.get("made_in", None if stage.get("cached") else stage["seconds"])


def total(seconds: Iterable[float | None]) -> float | None:
    """The sum; None where one of them is not known."""
    seconds = list(seconds)
    known = [value for value in seconds if value is not None]
    return round(sum(known), 3) if len(known) == len(seconds) else None


def _duration(facts: Mapping[str, Any]) -> str:
    return "cached" if facts.get("cached") else f"{facts['seconds']:.1f} s"


# It parses the package's whole METADATA file.
_version = functools.cache(version)


def versions() -> dict[str, str]:
    """The versions of Python and the packages that a result depends on."""
    installed = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            installed[package] = _version(package)
    return installed


def seconds_by_kind(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of each of KINDS, also of work that an earlier run did for it; what is not known is left out.

    `train` counts all networks that the run needs. `language_model` is 0 where none was asked.
    """
    kinds: dict[str, list[float | None]] = {kind: [] for kind in KINDS}
    for name, facts in stages.items():
        if name not in DATA_STAGES:
            kinds[_kind(name)].append(seconds_of(facts))
    if "test" not in stages:
        del kinds["test"]
    totals = {kind: total(each) for kind, each in kinds.items()}
    return {kind: seconds for kind, seconds in totals.items() if seconds is not None}


def tokens_of(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Tokens that a language model read (`read`) and wrote (`written`), in earlier runs too; without unknown counts.

    Stages that ask a language model note `tokens_read`. Records of earlier versions have none: nothing is known there,
    but where no stage has to do with a language model.
    """
    asking = [facts for facts in stages.values() if "tokens_read" in facts]
    if not asking and any(name not in DATA_STAGES and _kind(name) == "language_model" for name in stages):
        return {}
    counts = {
        "read": total(facts["tokens_read"] for facts in asking),
        "written": total(facts.get("tokens_written", 0) for facts in asking),
    }
    return {kind: int(count) for kind, count in counts.items() if count is not None}


def _kind(stage: str) -> str:
    return "train" if stage.partition(" ")[0] == "train" else "test" if stage == "test" else "language_model"
