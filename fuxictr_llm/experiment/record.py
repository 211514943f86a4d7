"""A run's record and weights: what the record says of the machine, and how both take their place together.

Where a run fails after its training, the weights are kept.
"""

import contextlib
import logging
import platform
import resource
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of_file, write_json
from fuxictr_llm.common.runs import Stages

AFFECTS_RESULTS = False  # see common/code_digest.py


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Trainable parameters of the backbone and of the method."""
    counts = {"backbone": 0, "method": 0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts["method" if name.startswith("enhancement.") else "backbone"] += parameter.numel()
    return counts


def hardware(gpu: int) -> dict[str, str | None]:
    """The machine: processor, the GPU of that index (None: the CPU alone), memory, CUDA."""
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
    """The most memory that the process used at any time, in MiB; on the GPU too if it used one."""
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    peak = {"process_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1)}
    if torch.cuda.is_available():
        peak["gpu_mib"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return peak


def typed_command() -> str:
    """The command of this process, as it can be typed again."""
    script, *args = sys.argv
    if Path(script).stem == "fuxictr-llm":
        return shlex.join(["fuxictr-llm", *args])
    is_ours = Path(script).parts[-2:] == ("fuxictr_llm", "__main__.py")  # python -m fuxictr_llm
    return shlex.join(["python", *(["-m", "fuxictr_llm"] if is_ours else [script]), *args])


@contextmanager
def weights_kept(weights: Path, kept: Path, stages: Stages) -> Iterator[None]:
    """Keep the weights of a block that trains and then fails: after the stage `train`, `weights` become `kept`.

    A finished run's files are not touched. A block that fails before, or is interrupted, leaves nothing: the same
    command trains again. `kept` is removed when the block ends well.

    Raises:
        UserError: that of the block, which then also says where the weights are.
    """
    try:
        yield
    except Exception as error:
        if "train" not in stages.done or not weights.is_file():
            raise
        weights.replace(kept)
        where = f"the weights, trained to the end, are kept in {str(kept)!r}"
        if isinstance(error, UserError):
            raise UserError(f"{error}; {where}") from error
        logging.error("the run failed after its training; %s", where)
        raise
    finally:
        weights.unlink(missing_ok=True)
    kept.unlink(missing_ok=True)


def put_in_place(weights: Path, files: Path, record: dict[str, Any]) -> None:
    """Make weights and record `<files>.model` and `.run.json`; those of an older run go only when both are written.

    The record gets the digest of the weights.

    Raises:
        OSError: they cannot be written.
    """
    written = weights.with_name(f"{weights.name}.json")  # the weights lie in a folder of the run's own
    record["weights_sha256"] = digest_of_file(weights)
    try:
        write_json(written, record)
        weights.replace(f"{files}.model")
        written.replace(f"{files}.run.json")
    finally:
        written.unlink(missing_ok=True)
