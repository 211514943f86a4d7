"""What a run leaves behind besides its weights: times by stage, and a record that says what was run on what."""

import contextlib
import logging
import platform
import resource
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch

from fuxictr_llm.data import SPLITS
from fuxictr_llm.data.loader import data_files
from fuxictr_llm.files import digest_of_file, read_json

# Some of them only because a row of BARS lists them.
PACKAGES = ("fuxictr-llm", "fuxictr", "torch", "transformers", "peft", "polars", "numpy", "ray", "pandas", "scipy")
PACKAGES += ("scikit-learn", "pyyaml", "h5py", "tqdm")


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


def seconds_of(stage: Mapping[str, Any]) -> float | None:
    """How long a stage's work took, also where runs before did it, or part of it; None where that is not known."""
    return stage.get("made_in", None if stage.get("cached") else stage["seconds"])


def total(seconds: Iterable[float | None]) -> float | None:
    """The sum; None where one is not known."""
    seconds = list(seconds)
    return None if None in seconds else round(sum(seconds), 3)


def _told(facts: Mapping[str, Any]) -> str:
    return "cached" if facts.get("cached") else f"{facts['seconds']:.1f} s"


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Trainable parameters of the backbone and of the method."""
    counts = {"backbone": 0, "method": 0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts["method" if name.startswith("enhancement.") else "backbone"] += parameter.numel()
    return counts


def describe_data(params: Mapping[str, Any], data_dir: Path) -> dict[str, Any]:
    """Digests and row counts of the data a run used."""
    manifest = read_json(data_dir / "build.json")
    if manifest and manifest["made_from"]:
        used = [split for split in SPLITS if params.get(f"{split}_data")]  # it may have been built with more
        rows, sha256 = manifest["rows"], manifest["made_from"]["raw"]
        rows, sha256 = ({split: of.get(split) for split in used} for of in (rows, sha256))
        return {"dataset_id": params["dataset_id"], "rows": rows, "sha256": sha256}
    paths = {split: data_files(params[f"{split}_data"]) for split in SPLITS if params.get(f"{split}_data")}
    paths |= {key: data_files(params[key]) for key in ("user_info", "item_info") if params.get(key)}
    digests = {key: [digest_of_file(path) for path in files] for key, files in paths.items()}
    return {"dataset_id": params["dataset_id"], "sha256": digests}


def versions() -> dict[str, str]:
    """Of Python and the packages that a result depends on."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def hardware(gpu: int) -> dict[str, str | None]:
    """What the process runs on: processor, the GPU of that index (None: the CPU alone), memory, CUDA."""
    used = gpu >= 0 and torch.cuda.is_available()
    gpu_memory = torch.cuda.get_device_properties(gpu).total_memory if used else 0
    return {
        "cpu": _processor(),
        "gpu": f"{torch.cuda.get_device_name(gpu)} {gpu_memory / 2**30:.0f}G" if used else None,
        "ram": f"{psutil.virtual_memory().total / 2**30:.0f}G",
        "cuda": torch.version.cuda if used else None,
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def peak_memory() -> dict[str, float]:
    """The most memory the process has had, in MiB; on the GPU too if it used one."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    peak = {"process_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)}
    if torch.cuda.is_available():
        peak["gpu_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return peak


def command() -> str:
    """As it can be typed again, for records."""
    script, *args = sys.argv
    is_ours = Path(script).parts[-2:] == ("fuxictr_llm", "__main__.py")  # python -m fuxictr_llm
    return shlex.join(["python", *(["-m", "fuxictr_llm"] if is_ours else [script]), *args])
