"""The runs of a leaderboard one by one, as a page lists them: how each is, and where its log and its record lie."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from fuxictr_llm.common.run_files import RECORD, run_files
from fuxictr_llm.leaderboard.plan.arms import Repeated
from fuxictr_llm.leaderboard.plan.plan import PlannedRun
from fuxictr_llm.leaderboard.run.progress import auc_of
from fuxictr_llm.leaderboard.run.results import Failure, RunResult

DONE, FAILED, RUNNING, TO_DO = "done", "failed", "running", "to do"
FILES = {"log": ".log", "record": RECORD, "output": ".out", "failure": ".failure.json"}


class Runs(NamedTuple):
    """The runs that a table is of: finished, failed, and all that were planned."""

    finished: Sequence[RunResult]
    failures: Sequence[Failure]
    planned: Sequence[Repeated]


class RunLine(NamedTuple):
    """A run in the list.

    Attributes:
        state: DONE, FAILED, RUNNING or TO_DO.
        auc: None where there is none.
        seconds: it took, or has taken so far; None: unknown.
        files: those that are there, name -> path relative to the leaderboard's folder.
    """

    dataset: str
    backbone: str
    arm: str
    repeat: str
    state: str
    auc: float | None
    seconds: float | None
    files: Mapping[str, str]


def list_runs(folder: Path, runs: Runs, running: Mapping[str, float] | None = None) -> list[RunLine]:
    """A line for each planned run; where the plan is not known, for each that is finished or failed.

    Args:
        folder: of the leaderboard.
        running: key of each run under way -> its seconds so far.
    """
    finished = {(run.key, run.arm): run for run in runs.finished}
    failed, running = {run.key for run in runs.failures}, running or {}
    lines = []
    for run in runs.planned or [*runs.finished, *runs.failures]:
        result, files = finished.get((run.key, run.arm)), _files_of(run)
        state, auc, seconds = FAILED if run.key in failed else TO_DO, None, None
        if run.key in running:
            state, seconds = RUNNING, running[run.key]
        elif result is not None:
            state, auc, seconds, files = DONE, auc_of(result), _seconds_of(result), _files_of_record(result) or files
        known = {kind: f"runs/{files}{ending}" for kind, ending in FILES.items()} if files else {}
        there = {kind: path for kind, path in known.items() if (folder / path).is_file()}
        arm = run.arm
        lines.append(RunLine(arm.dataset, arm.backbone, arm.label, run.repeat_text, state, auc, seconds, there))
    return lines


def _files_of(run: Repeated) -> str:
    """The path of a run's files in `runs/`, without their endings; empty where it is not known."""
    if not isinstance(run, PlannedRun):
        return ""
    return run_files(Path(run.experiment.params["dataset_id"]), run.name).as_posix()


def _files_of_record(result: RunResult) -> str:
    """As `_files_of`, of the run that left the record: an experiment that two arms name ran once."""
    name, dataset = result.record.get("model_id"), result.record.get("config", {}).get("dataset_id")
    return run_files(Path(dataset), name).as_posix() if name and dataset else ""


def _seconds_of(result: RunResult) -> float:
    return sum(facts.get("seconds", 0.0) for facts in result.record.get("stages", {}).values())
