"""What a node of a Ray cluster does for a leaderboard: a job in a fresh process, whose files go back as bytes.

The files lie in the node's cache until they are sent, so that a run that is tried again goes on from its checkpoint.
"""

import glob
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import cache_dir, digest_of, replacing_dir
from fuxictr_llm.common.processes import Lost, Pool
from fuxictr_llm.common.run_files import run_files
from fuxictr_llm.leaderboard.run import PRELOADED_FOR_RUNS
from fuxictr_llm.leaderboard.run.jobs import DONE, PRUNED, Job, Outcome, outcome_of, outcome_of_lost, run_job

CACHE_VARIABLE, PREFIX = "FUXICTR_LLM_CACHE", "FUXICTR_"
# The second: a worker of Ray is the main module of the processes that are forked for it.
PRELOADED_ON_RAY = (*PRELOADED_FOR_RUNS, "ray")
SENT_OF_FAILED = (".out", ".log")
Entries = Mapping[str, Mapping[str, bytes]]  # of a cache: `kind/digest` -> name of a file -> its content


@dataclass(frozen=True)
class Order:
    """A job for a node.

    Attributes:
        folder: the working directory, which relative paths start from.
        variables: of the environment, where the node's may be others.
        ships: whether what the job adds to the cache is for other nodes, too.
    """

    job: Job
    work: Callable[[Job], None]
    folder: str
    variables: Mapping[str, str]
    ships: bool


@dataclass(frozen=True)
class Answer:
    """How a job ended.

    Attributes:
        files: by the ends of their names, as in `.run.json`.
        made: names of what it added to the cache.
    """

    outcome: Outcome
    files: Mapping[str, bytes]
    made: Sequence[str] = ()


def variables() -> dict[str, str]:
    """The variables of FuxiCTR and ours, which a node must have as this process has them."""
    ours = {name: value for name, value in os.environ.items() if name.startswith(PREFIX)}
    return ours | ({CACHE_VARIABLE: str(cache_dir().absolute())} if ours.get(CACHE_VARIABLE) else {})


def do_job(order: Order, known: Iterable[tuple[Sequence[str], list[Any]]] = ()) -> tuple[Answer, Entries]:
    """Do a job; what came of it, and what it added to the cache.

    Args:
        known: names of entries that other nodes made, and a list of Ray's reference to them.
    """
    try:
        os.environ.update(order.variables)
        _enter(order.folder)
        before = {*entries()}
        for names, (reference,) in known:
            if not before.issuperset(names):
                unpack(_fetched(reference))
        before = {*entries()}
        answer = _do(order.job, order.work)
        made = pack({*entries()} - before) if order.ships else {}
        return replace(answer, made=[*made]), made
    except Exception as error:
        return Answer(outcome_of(error), {}), {}


def _fetched(reference: Any) -> Entries:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayError:  # the node that had them is gone: this one makes them itself
        return {}


def _enter(folder: str) -> None:
    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(
            f"the node {os.uname().nodename} has no folder {folder!r}; share the folder in which the leaderboard was "
            "started, or copy it there"
        ) from error


def _do(job: Job, work: Callable[[Job], None]) -> Answer:
    params = job.experiment.params
    place = (
        cache_dir() / "ray_runs" / digest_of([str(Path(params["model_root"]).absolute()), job.experiment.expid])[:16]
    )
    files = run_files(place / "runs" / params["dataset_id"], job.experiment.expid)
    own = {**params, "model_root": str(place / "runs")}
    experiment = replace(job.experiment, params=own, config_name=str(files))
    here = replace(job, experiment=experiment, output=Path(f"{files}{_end_of(job)}"))
    here.output.unlink(missing_ok=True)
    outcome = _prepared(here, work)
    if outcome.kind == DONE and not job.data_only:
        outcome = _in_a_process(here, work)
    sent = {
        path.name[len(files.name) :]: path
        for path in files.parent.glob(f"{glob.escape(files.name)}.*")
        if path.is_file()
    }
    if outcome.kind != DONE:
        sent = {end: path for end, path in sent.items() if end.endswith(SENT_OF_FAILED)}
    answer = Answer(outcome, {end: path.read_bytes() for end, path in sent.items()})
    if outcome.kind in (DONE, PRUNED):
        shutil.rmtree(place, ignore_errors=True)
    return answer


def _end_of(job: Job) -> str:
    return ".data.out" if job.data_only else ".out"


def _prepared(job: Job, work: Callable[[Job], None]) -> Outcome:
    """Have the data set made once on all nodes that share a disk, that of a node which joined late too."""
    params = job.experiment.params
    root, name = Path(params["data_root"]), params["dataset_id"]
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f".{name}.lock"):
        if not job.data_only and (root / name / "feature_map.json").is_file():
            return Outcome(DONE)
        return _in_a_process(replace(job, data_only=True), work)


def _in_a_process(job: Job, work: Callable[[Job], None]) -> Outcome:
    threads = job.experiment.params["num_threads"]
    with Pool[None, Outcome](1, PRELOADED_ON_RAY) as pool:
        pool.start(None, run_job, job, work, threads=threads)
        ended: list[tuple[None, Outcome | Lost]] = []
        while not ended:
            ended = pool.wait()
    ((_, outcome),) = ended
    if isinstance(outcome, Lost):
        return outcome_of_lost(outcome, job.output, "try more --cpus-per-run, so that fewer runs share a node")
    return outcome


def entries() -> Iterable[str]:
    """The entries of this cache that have a manifest: `kind/digest`."""
    return [f"{path.parent.parent.name}/{path.parent.name}" for path in cache_dir().glob("*/*/manifest.json")]


def pack(names: Iterable[str]) -> Entries:
    """The files of these entries."""
    folders = {name: cache_dir() / name for name in names}
    return {
        name: {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.is_file()}
        for name, folder in folders.items()
    }


def unpack(known: Entries) -> None:
    """Put those into this cache that it has not."""
    for name, files in known.items():
        if not (cache_dir() / name / "manifest.json").is_file():
            with replacing_dir(cache_dir() / name) as folder:
                for file, content in files.items():
                    (folder / file).write_bytes(content)
