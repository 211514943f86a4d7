"""What a run leaves: its record, its weights and a line in FuxiCTR's result file.

The record also has digests of what the result depends on besides settings and data: code, words of fields, and the
files that config keys name.

Record and weights take their place together. Where a run fails after its training, the weights are kept.
"""

import contextlib
import logging
import os
import platform
import resource
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import torch
from fuxictr.utils import print_to_list

from fuxictr_llm import llm, registry
from fuxictr_llm.common.code_digest import digest_of_code, modules_of, sources_below
from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.files import (
    digest_of,
    digest_of_file,
    digest_of_folder,
    digests_of_files,
    explain_write_errors,
    read_json,
    write_json,
)
from fuxictr_llm.common.processes import local_process_count, process_count, under_torchrun
from fuxictr_llm.common.run_files import RECORD, files_of, record_of_run
from fuxictr_llm.common.runs import Stages
from fuxictr_llm.common.sealed import sealed
from fuxictr_llm.config.language_models import ValueVectorsConfig, asks_for_vectors
from fuxictr_llm.data.field_words import read_field_config
from fuxictr_llm.llm.model_files import digest_of_model
from fuxictr_llm.registry import method_modules
from fuxictr_llm.serving.cost import cost_of_serving

AFFECTS_RESULTS = False  # see common/code_digest.py
DigestOfFolder = Callable[[Path], str]
# Keys that may name a folder. That a folder is called like the value of another key (`llm`) is chance.
FOLDERS: dict[str, DigestOfFolder] = {
    "language_model": digest_of_model,
    "text_vectors": digest_of_folder,
    "teacher": digest_of_folder,
}


def count_parameters(model: torch.nn.Module) -> dict[str, int]:
    """Trainable parameters of the backbone and of the method."""
    counts = {"backbone": 0, "method": 0}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            counts["method" if name.startswith("enhancement.") else "backbone"] += parameter.numel()
    return counts


def hardware(gpu: int) -> dict[str, str | int | None]:
    """The machine: processor, the GPU of that index (None: the CPU alone), memory, CUDA; how many processes there are.

    Under torchrun, each process has a GPU like that one.
    """
    used = gpu >= 0 and torch.cuda.is_available()
    gpu_memory = torch.cuda.get_device_properties(gpu).total_memory if used else 0
    return {
        "cpu": _processor(),
        "gpu": f"{torch.cuda.get_device_name(gpu)} {gpu_memory / 2**30:.0f}G" if used else None,
        "ram": f"{psutil.virtual_memory().total / 2**30:.0f}G",
        "cuda": torch.version.cuda if used else None,
        "processes": process_count(),
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
    program = ["python"]
    if under_torchrun():
        program = ["torchrun", "--nproc_per_node", str(local_process_count())]
    if Path(script).stem == "fuxictr-llm":
        return _joined(["fuxictr-llm", *args])
    is_ours = Path(script).parts[-2:] == ("fuxictr_llm", "__main__.py")  # python -m fuxictr_llm
    return _joined([*program, *(["-m", "fuxictr_llm"] if is_ours else [script]), *args])


def _joined(words: list[str]) -> str:
    """A command on one line: bash reads `$'a\\nb'` as a word with a line break."""
    return " ".join(shlex.quote(word) if word.isprintable() else f"$'{''.join(map(_escaped, word))}'" for word in words)


def _escaped(sign: str) -> str:
    if sign in "\\'":
        return f"\\{sign}"
    return sign if sign.isprintable() else f"\\U{ord(sign):08x}" if ord(sign) > 127 else f"\\x{ord(sign):02x}"


def measured_serving(record: Mapping[str, Any], weights: Path) -> dict[str, Any] | None:
    """What serving the run takes (`cost_of_serving`); None, with a line in the log, where that cannot be measured.

    Args:
        weights: the file that was trained.
    """
    try:
        return cost_of_serving(record, torch.load(weights, map_location="cpu", weights_only=True))
    except Exception as error:  # a model that cannot be served is a result all the same
        logging.warning("what serving %s takes is not measured: %s", record["model_id"], reason_of(error))
        return None


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

    The record gets the digest of the weights, and of itself.

    Raises:
        OSError: they cannot be written.
    """
    written = weights.with_name(f"{weights.name}.json")  # the weights lie in a folder of the run's own
    record["weights_sha256"] = digest_of_file(weights)
    try:
        record |= sealed(record)
        write_json(written, record)
        weights.replace(f"{files}.model")
        written.replace(f"{files}{RECORD}")
    finally:
        written.unlink(missing_ok=True)


def warn_of_other_code(files: Path, sources: Mapping[str, Any]) -> None:
    """Warn where the record `<files>.run.json`, which a run is going to replace, is of other code of its method."""
    record = read_json(f"{files}{RECORD}")
    noted = (record.get("sources") or {}).get("code") or {} if isinstance(record, dict) else {}
    if "method" in noted and noted["method"] != sources["code"].get("method"):
        logging.warning("%s is of a run with other code of its method: it is replaced when this run ends", files)


def append_result_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add a run's line to a result file, in FuxiCTR's form."""
    line = ",".join(result_cells(record, datetime.now())) + "\n"
    with explain_write_errors(path, "run in a folder that can be written to"), path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read() == b"\n" else "\n" + line  # a full disk has cut the line before
        file.write(line.encode())


def result_cells(record: Mapping[str, Any], time: datetime) -> list[str]:
    """The cells of a run's line in a result file."""
    valid, test = (print_to_list(record["metrics"][split]) for split in ("valid", "test"))
    return [
        f" {time:%Y%m%d-%H%M%S}",
        f"[command] {record['command']}",
        f"[exp_id] {record['model_id']}",
        f"[dataset_id] {record['config']['dataset_id']}",
        "[train] N.A.",
        f"[val] {valid}",
        f"[test] {test}",
    ]


def source_digests(params: Mapping[str, Any]) -> dict[str, Any]:
    """Digests of what a run with these settings depends on, as it is on the disk now.

    `code` is `code_digests`; `words` is of the words of fields, where a language model sees them; `files` are of the
    files, trained runs and folders (of FOLDERS) that config keys name, by that name.
    """
    method = registry.find_method(params["method"]) if params.get("method") else None
    digests: dict[str, Any] = {"code": code_digests(params)}
    if method or asks_for_vectors(params):
        with contextlib.suppress(UserError):  # the run itself reads the words, and says what is wrong with them
            digests["words"] = digest_of(read_field_config(params.get("field_config")))
    files = {name: digest for name, of_folder in _named(params, method) if (digest := _digest(name, of_folder))}
    return {**digests, "files": files} if files else digests


def code_digests(params: Mapping[str, Any]) -> dict[str, str]:
    """Digests of code: `backbone`, with all that a plain run uses, and `method`, where there is one."""
    # A run without vectors of columns imports these modules, but calls nothing of them.
    idle = () if any(column.get("pretrained_emb") for column in _columns(params)) else (llm.__name__,)
    backbone = sources_below(modules_of(registry.find_backbone(params["model"])))
    digests = {"backbone": digest_of(backbone | sources_below([f"{__package__}.run"], without=idle))}
    if params.get("method"):
        digests["method"] = digest_of_code(method_modules(params["method"]))
    return digests


def _columns(params: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [column for key in ("feature_cols", "feature_specs") for column in params.get(key) or ()]


def _named(
    params: Mapping[str, Any], method: registry.RegisteredMethod | None
) -> Iterator[tuple[str, DigestOfFolder | None]]:
    """The texts among the values, which may name something on the disk; and how a folder of that name is digested.

    None: a folder of that name does not count.
    """
    fields = dict(ValueVectorsConfig.__dataclass_fields__) if asks_for_vectors(params) else {}
    fields |= method.config_cls.__dataclass_fields__ if method else {}
    for key, field in fields.items():
        value = params.get(key, field.default)
        of_folder = FOLDERS.get(key) if value != field.default else None  # a default is a word: `teacher: gain`
        yield from ((text, of_folder) for text in _texts(value))
    for text in _texts([column.get("pretrained_emb") for column in _columns(params)]):
        yield text, None
    for text in _texts([spec.get("pretrained_emb") for spec in params.get("feature_specs") or ()]):
        yield str(Path(params["data_root"], params["dataset_id"], text)), None  # where FuxiCTR looks


def _texts(value: Any) -> Iterator[str]:
    """Also those in a list or a mapping, as in `value_texts`."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)


def _digest(name: str, of_folder: DigestOfFolder | None) -> str | None:
    """Digest of the file, trained run or folder that a value names; None where there is none."""
    # A text may be too long for a name, `~` may name no user, a file may be unreadable: the run itself says so.
    with contextlib.suppress(OSError, RuntimeError):
        if record := record_of_run(name):  # as `export_run` takes it
            weights = Path(f"{files_of(record)}.model")
            parts = [path for path in (record, weights) if path.is_file()]
            return digest_of(dict(zip([path.name for path in parts], digests_of_files(parts), strict=True)))
        if Path(name).is_file():
            return digest_of_file(name)
        folder = Path(name).expanduser()
        if of_folder and folder.is_dir():
            return of_folder(folder)
    return None
