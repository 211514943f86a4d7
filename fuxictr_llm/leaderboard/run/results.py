"""What a leaderboard's folder holds: the plan, a record of each finished run, and why the others failed.

    plan.yaml                                what was asked for
    runs/<data set>/<run>/       the folder of a run, whose files are called `<run>` with
        .run.json, .log          of a finished run; `.csv`: FuxiCTR's result line; `.model`: if it is kept
        .failure.json            of one that failed, with `.out`: what it said last
        .pruned.json             of a search's trial that was ended before its time
    users.json                   intervals over test users, of the runs' `.predictions.safetensors`
    table.*, *.png, runs.jsonl.xz    made of these

There is no other list of what is done, so that no run is lost or counted twice. A record or a note on a failure counts
where it has its form.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import (
    digest_of,
    explain_write_errors,
    read_json,
    remove_abandoned,
    replacing,
    write_json,
)
from fuxictr_llm.common.run_files import RECORD, run_files
from fuxictr_llm.common.runs import seconds_by_kind, tokens_of, versions
from fuxictr_llm.experiment.predictions import PREDICTIONS
from fuxictr_llm.experiment.record import source_digests
from fuxictr_llm.leaderboard.plan.arms import Repeated, data_digests, digest_of_data_keys
from fuxictr_llm.leaderboard.plan.plan import Arm, Plan, PlannedRun, run_key
from fuxictr_llm.leaderboard.run.forms import PACKAGE, failure_problem, pruned_problem, record_problem

OTHER_OUT = "give another folder with --out"
PLAN_FILE, USERS_FILE = "plan.yaml", "users.json"
Contents = dict[str, dict[Path, dict[str, Any]]]  # of JSON files: by the key of the run, and by file


@dataclass(frozen=True)
class RunResult(Repeated):
    """A finished run of an arm.

    Attributes:
        key: digest of what it computed.
        split: number of the split of its data, from 1 on; 0: the data set's own.
        metrics: `valid` and `test` -> metric -> value; test is empty where the data has none.
        slices: test metrics by item frequency, as in the run record.
        seconds: as `seconds_by_kind` counts them.
        rows: of each split, as far as they are known.
        parameters: trainable ones of `backbone` and `method`.
        tokens: `read` and `written` by a language model, as far as they are known.
        served: as `cost_of_serving` gives it; empty where it was not measured.
        record: the whole run record.
    """

    arm: Arm
    seed: int
    key: str
    metrics: Mapping[str, Mapping[str, float]]
    slices: Mapping[str, Any] | None
    seconds: Mapping[str, float]
    rows: Mapping[str, int]
    parameters: Mapping[str, int]
    record: Mapping[str, Any]
    split: int = 0
    tokens: Mapping[str, int] = field(default_factory=dict)
    served: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure(Repeated):
    """A run that failed, and why."""

    arm: Arm
    seed: int
    key: str
    reason: str
    split: int = 0


class Results:
    """The state of a plan's runs, by the files in the leaderboard's folder; `read` reads them again.

    A run is finished when there is a record with its key, the same data and sources (`source_digests`: code, words,
    files), and our version. A failure counts as long as these are the same too. There may be several records with one
    key, as of an experiment under two names: those that are stale are passed over.

    Args:
        folder: of the leaderboard.
        plan: None: the folder's own.

    Attributes:
        ignored: a line for each file in the folder that does not count.

    Raises:
        UserError: no plan is given, and the folder has none.
    """

    def __init__(self, folder: Path | str, plan: Plan | None = None):
        self.folder = Path(folder)
        if plan is None and not self.plan_file.is_file():
            raise UserError(f"{str(folder)!r} is no leaderboard: it has no {self.plan_file.name}")
        self.plan = plan or Plan.read(self.plan_file)
        self._data: dict[str, dict[str, Any] | None] = {}
        self._sources: dict[str, dict[str, Any]] = {}
        self.read()

    @property
    def plan_file(self) -> Path:
        return self.folder / PLAN_FILE

    def read(self) -> None:
        """Read the folder again."""
        self.ignored: list[str] = []
        self._records: Contents = {}
        self._failures: Contents = {}
        self._pruned: Contents = {}
        for path in sorted((self.folder / "runs").glob(f"*/*/*{RECORD}")):
            self._keep(path, self._records, record_problem)
        for path in sorted((self.folder / "runs").glob("*/*/*.failure.json")):
            self._keep(path, self._failures, failure_problem)
        for path in sorted((self.folder / "runs").glob("*/*/*.pruned.json")):
            self._keep(path, self._pruned, pruned_problem)
        records = [record for by_file in self._records.values() for record in by_file.values()]
        if without_code := sum("code" not in (record.get("sources") or {}) for record in records):
            self.ignored.append(
                f"run records of an earlier version ({without_code} in {self.folder}) do not say with which code they "
                "were made; their runs are done again"
            )

    def read_run(self, run: PlannedRun) -> str:
        """Read a run's record again, and return what is wrong with it; empty: nothing."""
        return self._keep(Path(f"{self.files_of(run)}{RECORD}"), self._records, record_problem)

    def finished(self) -> list[RunResult]:
        """The runs that are done, in the plan's order; one experiment counts for every arm that names it."""
        records = [(run, self.record_of(run)) for run in self.plan.runs()]
        return [result_of(run, record) for run, record in records if record]

    def failures(self) -> list[Failure]:
        """The runs that failed and would do so again, in the plan's order."""
        failed = [(run, self.failure_of(run)) for run in self.plan.runs()]
        return [Failure(run.arm, run.seed, run.key, failure["reason"], run.split) for run, failure in failed if failure]

    def to_do(self, retry_failed: bool = False) -> list[PlannedRun]:
        """The runs that are neither done nor failed, identical ones once, in the plan's order."""
        left = {run.key: run for run in reversed(self.plan.runs()) if not self.record_of(run)}
        return [run for run in reversed(left.values()) if retry_failed or not self.failure_of(run)]

    def record_of(self, run: PlannedRun) -> dict[str, Any] | None:
        """The record of a finished run."""
        records = _own_first(self._records, run, Path(f"{self.files_of(run)}{RECORD}"))
        return next((record for record in records if self._is_current(record, run)), None)

    def failure_of(self, run: PlannedRun) -> dict[str, Any] | None:
        """The note on a failed run: `reason`, `traceback`, `data`, `sources`, `time`, `version`."""
        return self._current_note(self._failures, run, self._failure_file(run))

    def curve_of_pruned(self, run: PlannedRun) -> Sequence[float] | None:
        """The validation AUC after each epoch of a run that was pruned; None of another one."""
        note = self._current_note(self._pruned, run, self._pruned_file(run))
        return None if note is None else note["curve"]

    def _current_note(self, notes: Contents, run: PlannedRun, own: Path) -> dict[str, Any] | None:
        with_key = _own_first(notes, run, own)
        if not with_key or self.record_of(run):
            return None
        now = (self.data_of(run), self._sources_of(run))
        return next((note for note in with_key if (note["data"], note["sources"]) == now), None)

    def data_of(self, run: PlannedRun) -> dict[str, Any] | None:
        """Digests of the files of its data set as they are now; None: they are not there (yet)."""
        key, known = digest_of_data_keys(run.experiment.params), self._data  # a display asks in a thread of its own
        if key not in known:
            known[key] = data_digests(run.experiment.params)
        return known[key]

    def forget_data(self) -> None:
        """Digest the files of the data sets again when next asked: they may have changed."""
        self._data = {}

    def _sources_of(self, run: PlannedRun) -> dict[str, Any]:
        arm = f"{run.arm} {digest_of(run.arm.settings)}"  # a search has trials of an arm at several settings
        if arm not in self._sources:
            self._sources[arm] = source_digests(run.experiment.params)
        return self._sources[arm]

    def files_of(self, run: PlannedRun) -> Path:
        """The path of a run's files without their endings."""
        return run_files(self.folder / "runs" / run.experiment.params["dataset_id"], run.name)

    def _failure_file(self, run: PlannedRun) -> Path:
        return Path(f"{self.files_of(run)}.failure.json")

    def _pruned_file(self, run: PlannedRun) -> Path:
        return Path(f"{self.files_of(run)}.pruned.json")

    def write_plan(self) -> None:
        """Note the plan in the folder.

        Raises:
            UserError: it cannot be written.
        """
        with explain_write_errors(self.plan_file, OTHER_OUT), replacing(self.plan_file) as temporary:
            temporary.write_text(self.plan.to_yaml(), encoding="utf-8")

    def make_way(self, run: PlannedRun) -> None:
        """Before a run: put its old record aside, and remove what else an earlier try left."""
        files = self.files_of(run)
        record = Path(f"{files}{RECORD}")
        if record.exists():
            record.replace(f"{record}.old")
        for path in (Path(f"{files}.{kind}") for kind in ("model", "out", "csv", PREDICTIONS.lstrip("."))):
            path.unlink(missing_ok=True)
        self.clear_unfinished(run)

    def clear_unfinished(self, run: PlannedRun) -> None:
        """Remove the weights and half-written files of a killed run, which may be large."""
        remove_abandoned(self.files_of(run).parent, again=True)

    def note_failure(self, run: PlannedRun, reason: str, traceback: str = "") -> None:
        """Record that a run failed.

        Raises:
            UserError: it cannot be written.
        """
        self._note(run, self._failures, self._failure_file(run), {"reason": reason, "traceback": traceback})

    def note_pruned(self, run: PlannedRun, curve: Sequence[float]) -> None:
        """Record that a trial's run was ended before its time; `curve` is its validation AUC after each epoch.

        Raises:
            UserError: it cannot be written.
        """
        facts = {"epoch": len(curve), "valid_auc": curve[-1], "curve": list(curve)}
        self._note(run, self._pruned, self._pruned_file(run), facts)

    def _note(self, run: PlannedRun, notes: Contents, path: Path, content: Mapping[str, Any]) -> None:
        facts = {"key": run.key, "run": str(run), **content, "data": self.data_of(run)}
        facts |= {"sources": self._sources_of(run), "version": versions().get(PACKAGE)}
        facts |= {"time": time.strftime("%Y-%m-%dT%H:%M:%S")}
        with explain_write_errors(path, OTHER_OUT):
            write_json(path, facts)
        notes.setdefault(run.key, {})[path] = facts

    def forget_failure(self, run: PlannedRun) -> None:
        """Remove the note on a failure of a run that is done by now."""
        self._failure_file(run).unlink(missing_ok=True)

    def _keep(self, path: Path, contents: Contents, problem_of: Callable[[Any], str]) -> str:
        content = read_json(path)
        problem = problem_of(content)
        if problem or content is None:
            self.ignored.append(f"{path} {problem}; it is ignored")
        else:
            key = content["key"] if "key" in content else run_key(content["config"])
            contents.setdefault(key, {})[path] = content
        return problem

    def _is_current(self, record: Mapping[str, Any], run: PlannedRun) -> bool:
        """Whether a run with this key would have the same data and sources today; missing data cannot be compared."""
        same_data = self.data_of(run) in (None, record["data"]["sha256"])
        return same_data and record.get("sources") == self._sources_of(run)


def _own_first(contents: Contents, run: PlannedRun, own: Path) -> list[dict[str, Any]]:
    """The contents with the key of a run, that of its own file before the others."""
    with_key = list(contents.get(run.key, {}).items())  # a copy: a display asks in a thread of its own
    return [content for _, content in sorted(with_key, key=lambda item: item[0] != own)]


def result_of(run: Repeated, record: dict[str, Any]) -> RunResult:
    """What a run's record says of it."""
    stages = record["stages"]
    rows = dict(record["data"].get("rows") or {})
    rows |= {"test": stages["test"]["rows"]} if "rows" in stages.get("test", {}) else {}
    return RunResult(
        arm=run.arm,
        seed=run.seed,
        key=run.key,
        metrics=record["metrics"],
        slices=record.get("slices"),
        seconds=seconds_by_kind(stages),
        rows=rows,
        parameters=record["parameters"],
        record=record,
        split=run.split,
        tokens=tokens_of(stages),
        served=record.get("served") or {},
    )
