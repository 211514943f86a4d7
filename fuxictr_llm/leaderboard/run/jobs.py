"""A job of a leaderboard: a run, or a data set made ready; what a process does, and how it ended."""

import contextlib
import json
import os
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fuxictr_llm.common.code_digest import digest_of_code
from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.files import explain_write_errors, replacing, write_json
from fuxictr_llm.common.full_disk import is_of_full_disk
from fuxictr_llm.common.processes import Lost
from fuxictr_llm.common.run_files import RECORD, run_files
from fuxictr_llm.common.sealed import sealed
from fuxictr_llm.config.resolve import Experiment
from fuxictr_llm.experiment.record import typed_command
from fuxictr_llm.leaderboard.run.pruning import Curve, Pruned, Watcher
from fuxictr_llm.leaderboard.run.results import OTHER_OUT

DONE, PRUNED, FAILED, DISK_FULL = "done", "pruned", "failed", "disk full"


@dataclass(frozen=True)
class Job:
    """What a process is to do, and where.

    Attributes:
        experiment: says by `expid` and `model_root` what its files are called and where they lie.
        output: gets what the process prints; it is removed where all went well.
        data_only: whether the data set alone is prepared and built.
        keep_weights: whether the trained weights are left.
        others: the curves of an arm's trials before, below which a hopeless one is pruned; None: it is not.
    """

    experiment: Experiment
    output: Path
    data_only: bool
    keep_weights: bool
    others: tuple[Curve, ...] | None = None


@dataclass(frozen=True)
class Outcome:
    """How a job ended: DONE, PRUNED, FAILED or DISK_FULL, and why where it is not DONE.

    Attributes:
        curve: of a run that was pruned.
    """

    kind: str
    reason: str = ""
    traceback: str = ""
    curve: Curve = ()


def run_job(job: Job, work: Callable[[Job], None]) -> Outcome:
    """Do a job with `work`, and say how it ended; what it prints goes to its file."""
    try:
        with _printing_to(job.output):
            work(job)
        outcome = Outcome(DONE)
    except BaseException as error:
        outcome = outcome_of(error)
    if outcome.kind in (DONE, PRUNED):
        job.output.unlink(missing_ok=True)
    return outcome


def work(job: Job) -> None:
    """What a job is: a data set made ready, or a run."""
    from fuxictr_llm.common.runs import Stages
    from fuxictr_llm.experiment.preparation import make_data
    from fuxictr_llm.experiment.run import run_experiment

    check_unchanged()
    if job.data_only:
        make_data(job.experiment.params, Stages())
        return
    result = run_experiment(job.experiment, listener=None if job.others is None else Watcher(job.others))
    if not job.keep_weights:
        Path(result.model.checkpoint).unlink(missing_ok=True)


def outcome_of(error: BaseException) -> Outcome:
    """What a leaderboard notes of an error: a line of its own, and where it came from."""
    if isinstance(error, Pruned):
        return Outcome(PRUNED, str(error), curve=error.curve)
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {reason_of(error)}"
    kind = DISK_FULL if is_of_full_disk(error) else FAILED
    return Outcome(kind, reason, "".join(traceback.format_exception(error)))


@contextlib.contextmanager
def _printing_to(path: Path) -> Iterator[None]:
    """Both outputs of this process, and of what it starts, go to a file: the parent's screen is its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        yield


def _code_on_disk() -> str:
    return digest_of_code(["fuxictr_llm.experiment.run"])


CODE = _code_on_disk()


def check_unchanged() -> None:
    """Check that the code on the disk, which a run's record names, is still that of this process.

    Raises:
        UserError: it is not.
    """
    if _code_on_disk() != CODE:
        raise UserError("the code of fuxictr_llm was changed since the leaderboard was started; start it again")


def outcome_of_lost(lost: Lost, output: Path, advice: str) -> Outcome:
    """What a leaderboard notes of a job whose process is gone.

    Args:
        output: where the process printed.
        advice: what helps where memory runs out.
    """
    text = lost.reason
    if lost.killed_by == "SIGKILL":
        text += f", as the system does when memory runs out; {advice}"
    with contextlib.suppress(OSError):
        lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        text += f"; its last words: {lines[-1].strip()[:300]}" if lines else ""
    return Outcome(FAILED, text)


def write_files(job: Job, files: Mapping[str, bytes]) -> None:
    """Write the files of a job that was done elsewhere, the record last, as if it had been here.

    Args:
        files: by the ends of their names.

    Raises:
        UserError: they cannot be written.
    """
    params = job.experiment.params
    own = run_files(Path(params["model_root"]) / params["dataset_id"], job.experiment.expid)
    for end in sorted(files, key=lambda end: end == RECORD):
        path = Path(f"{own}{end}")
        with explain_write_errors(path, OTHER_OUT):
            if end == RECORD:
                record = json.loads(files[end])
                record["config"]["model_root"], record["command"] = params["model_root"], typed_command()
                record["config_sha256"] = job.experiment.sha256  # which has `model_root`
                write_json(path, sealed(record))
                continue
            with replacing(path) as temporary:
                temporary.write_bytes(files[end])
