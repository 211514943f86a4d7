"""What `--dry-run` says: devices, workers, hours and gigabytes that a command would use, by the runs that are there."""

import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuxictr_llm.commands.places import Place
from fuxictr_llm.common.files import cache_dir, read_json
from fuxictr_llm.common.processes import process_count
from fuxictr_llm.common.run_files import records_in
from fuxictr_llm.common.stored import size_text

if TYPE_CHECKING:
    from rich.console import Console

    from fuxictr_llm.config.resolve import Experiment
    from fuxictr_llm.leaderboard.run.results import Results


def print_plan(results: "Results", place: Place, retry_failed: bool, console: "Console") -> None:
    """Say what of a plan is done and to do, and what the rest would take."""
    from fuxictr_llm.leaderboard.run.progress import Estimator, state_table

    for line in results.ignored:
        console.print(line, markup=False, soft_wrap=True)
    console.print(state_table(results, retry_failed))
    for failure in results.failures():
        console.print(f"failed: {failure.arm}, {failure.repeat_text}: {failure.reason}", markup=False, soft_wrap=True)
    to_do, jobs, finished = results.to_do(retry_failed), place.jobs or 1, results.finished()
    lines = [f"where: {place}"]
    if to_do:
        lines += _data_lines([run.experiment.params for run in to_do])
        lines += [_memory_line([result.record for result in finished], jobs)]
        lines += _language_model_lines([run.experiment.params for run in to_do if run.language_model])
    estimate = Estimator(finished).estimate(to_do, jobs)
    lines += [f"{len(to_do)} runs to do, {jobs} at the same time: {estimate}; in {results.folder}"]
    console.print(*lines, sep="\n", markup=False, soft_wrap=True)


def needs_of(experiment: "Experiment", encode_only: bool = False) -> list[str]:
    """What a run of an experiment would take, a line for each thing."""
    from fuxictr_llm.leaderboard.plan.arms import language_model_work
    from fuxictr_llm.leaderboard.run.progress import duration_text

    params = experiment.params
    device = f"GPU {params['gpu']}" if params["gpu"] >= 0 else "the CPU"
    lines = [f"where: {device}, {process_count()} processes of {params['num_threads']} threads", *_data_lines([params])]
    records = list(_records_like(params))
    lines.append(_memory_line(records, process_count()))
    if language_model_work(params):
        lines += _language_model_lines([params])
    stages = [record.get("stages", {}).values() for record in records]
    seconds = [sum(facts["seconds"] for facts in each) for each in stages if not encode_only]
    if seconds:
        took = f"about {duration_text(sum(seconds) / len(seconds))}, as {len(seconds)} earlier runs took"
        return [*lines, f"time: {took}"]
    return [*lines, "time: no estimate, as no such run is done"]


def _records_like(params: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The records of runs of the same backbone and method on the same data set."""
    for path in records_in(Path(params["model_root"]) / params["dataset_id"]):
        record = read_json(path)
        config = record.get("config") if isinstance(record, dict) else None
        if isinstance(config, dict) and all(config.get(key) == params.get(key) for key in ("model", "method")):
            yield record


def _data_lines(each: Iterable[Mapping[str, Any]]) -> list[str]:
    """Each data set, with the size of its files on the disk."""
    lines = {}
    for params in each:
        name, built = params["dataset_id"], Path(params["data_root"]) / params["dataset_id"]
        if (built / "feature_map.json").is_file():
            lines[name] = f"data set {name}: built, {size_text(_size(built))} on the disk"
            continue
        raw = [Path(params[f"{split}_data"]) for split in ("train", "valid", "test") if params.get(f"{split}_data")]
        size = sum(map(_size, raw))
        of = f"from {size_text(size)} of raw files" if size else "from raw files that are not here yet"
        lines[name] = f"data set {name}: to be built, {of}"
    return list(lines.values())


def _memory_line(records: Iterable[Mapping[str, Any]], jobs: int) -> str:
    import psutil

    free = f"{size_text(psutil.virtual_memory().available)} are free here"
    peaks = [record.get("peak_memory") or {} for record in records]
    mebibytes = max((peak.get("process_mib", 0.0) for peak in peaks), default=0.0)
    if not mebibytes:
        return f"memory: no estimate, as no such run is done; {free}"
    on_gpu = max((peak.get("gpu_mib", 0.0) for peak in peaks), default=0.0)
    gpu = f", and {size_text(on_gpu * 2**20)} of a GPU" if on_gpu else ""
    return f"memory: {jobs} x {size_text(mebibytes * 2**20)}{gpu}, the most that such a run took; {free}"


def _language_model_lines(each: Iterable[Mapping[str, Any]]) -> list[str]:
    names = dict.fromkeys(str(params["language_model"]) for params in each if params.get("language_model"))
    at = cache_dir()
    return [f"language model {name}: asked once, its answers are kept in {at}" for name in names]


def _size(path: Path) -> int:
    """Bytes of a file, or of all in a folder; 0 where there is none."""
    if path.is_file():
        return path.stat().st_size
    return sum((Path(top) / name).lstat().st_size for top, _, names in os.walk(path) for name in names)
