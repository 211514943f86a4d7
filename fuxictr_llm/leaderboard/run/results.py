"""What a leaderboard's folder holds: the plan, a record of each finished run, and why the others failed.

    plan.yaml                                what was asked for last
    runs/<data set>/<run>.run.json, .log     of a finished run; `.csv`: FuxiCTR's result line; `.model`: if it is kept
    runs/<data set>/<run>.failure.json       of one that failed, with `.out`: what it said last

Nothing else says which runs are done, so that none is ever lost or counted twice.
"""

import glob
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of, explain_write_errors, read_json, remove_abandoned, replacing, write_json
from fuxictr_llm.common.runs import seconds_of, total, versions
from fuxictr_llm.data import SPLITS
from fuxictr_llm.experiment.identity import sources_of
from fuxictr_llm.leaderboard.plan.plan import Arm, Plan, PlannedRun, key_of
from fuxictr_llm.leaderboard.run.records import OURS, digests_now, failure_problem, record_problem

# Stages that neither train nor test a network, nor have to do with a language model.
OF_DATA = ("prepare data", "build data")
KINDS = ("train", "test", "language_model")


def seconds_by_kind(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Seconds of each of KINDS, also of work that the run found done; what is not known is left out.

    `train` is of all networks that the run needs, `language_model` 0 where none was asked.
    """
    kinds: dict[str, list[float | None]] = {kind: [] for kind in KINDS}
    for name, facts in stages.items():
        if name not in OF_DATA:
            kinds[_kind(name)].append(seconds_of(facts))
    if "test" not in stages:
        del kinds["test"]
    found = {kind: total(each) for kind, each in kinds.items()}
    return {kind: seconds for kind, seconds in found.items() if seconds is not None}


def _kind(stage: str) -> str:
    return "train" if stage.partition(" ")[0] == "train" else "test" if stage == "test" else "language_model"


OTHER_OUT = "give another folder with --out"

Contents = dict[str, dict[Path, dict[str, Any]]]  # of files: by the key of the run, and by file


@dataclass(frozen=True)
class RunResult:
    """A finished run of an arm.

    Attributes:
        key: digest of what it computed.
        metrics: `valid` and `test` -> metric -> value; test is empty where the data has none.
        slices: test metrics by item frequency, as in the run record.
        seconds: `train` (all networks of the run), `test`, and `language_model` (0 where nothing is asked), also of
            work that the run found done; absent where they are not known.
        rows: of each split, as far as they are known.
        parameters: trainable ones of `backbone` and `method`.
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


@dataclass(frozen=True)
class Failure:
    """A run that failed, and why."""

    arm: Arm
    seed: int
    key: str
    reason: str


class Results:
    """The state of a plan's runs, as its folder has it at this moment; `read` looks again.

    A run is finished when there is a record of the same key, the same data and sources (`sources_of`: code, words,
    files), and our version. A failure counts as long as these are the same too. Of several with one key, as of an
    experiment under two names, those that are stale are passed over.

    Args:
        folder: of the leaderboard.
        plan: None: the folder's own.

    Attributes:
        ignored: what lies there and does not count, in words.

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
        return self.folder / "plan.yaml"

    def read(self) -> None:
        """Look at the folder again."""
        self.ignored: list[str] = []
        self._records: Contents = {}
        self._failures: Contents = {}
        for path in sorted((self.folder / "runs").glob("*/*.run.json")):
            self._keep(path, self._records, record_problem)
        for path in sorted((self.folder / "runs").glob("*/*.failure.json")):
            self._keep(path, self._failures, failure_problem)
        records = [record for of_key in self._records.values() for record in of_key.values()]
        if silent := sum("code" not in (record.get("sources") or {}) for record in records):
            self.ignored.append(
                f"run records of an earlier version ({silent} in {self.folder}) do not say which code they are of; "
                "their runs are done again"
            )

    def read_run(self, run: PlannedRun) -> str:
        """Look at a run's record again; what is wrong with it, or an empty string."""
        return self._keep(Path(f"{self.files_of(run)}.run.json"), self._records, record_problem)

    def finished(self) -> list[RunResult]:
        """The runs that are done, in the plan's order; one experiment counts for every arm that names it."""
        found = [(run, self.record_of(run)) for run in self.plan.runs()]
        return [_result(run, record) for run, record in found if record]

    def failures(self) -> list[Failure]:
        """The runs that failed and would do so again, in the plan's order."""
        failed = [(run, self.failure_of(run)) for run in self.plan.runs()]
        return [Failure(run.arm, run.seed, run.key, found["reason"]) for run, found in failed if found]

    def to_do(self, retry_failed: bool = False) -> list[PlannedRun]:
        """The runs that are neither done nor failed, identical ones once, in the plan's order."""
        left = {run.key: run for run in reversed(self.plan.runs()) if not self.record_of(run)}
        return [run for run in reversed(left.values()) if retry_failed or not self.failure_of(run)]

    def record_of(self, run: PlannedRun) -> dict[str, Any] | None:
        """The record of a finished run."""
        own = Path(f"{self.files_of(run)}.run.json")
        return next((of for of in _own_first(self._records, run, own) if self._is_as_now(of, run)), None)

    def failure_of(self, run: PlannedRun) -> dict[str, Any] | None:
        """What is noted of a failed run: `reason`, `traceback`, `data`, `sources`, `time`, `version`."""
        failures = _own_first(self._failures, run, self._failure_file(run))
        if not failures or self.record_of(run):
            return None
        now = (self.data_of(run), self._sources_of(run))
        return next((of for of in failures if (of["data"], of["sources"]) == now), None)

    def data_of(self, run: PlannedRun) -> dict[str, Any] | None:
        """Digests of the files of its data set as they are now; None: they are not there (yet)."""
        params = run.experiment.params
        files = {key: params.get(key) for key in ("dataset_id", "data_root", "data_format", "rebuild_dataset")}
        files |= {split: params.get(f"{split}_data") for split in SPLITS}
        files |= {key: params.get(key) for key in ("user_info", "item_info")}
        key = digest_of(files)
        known = self._data  # a display asks in a thread of its own
        if key not in known:
            known[key] = digests_now(params)
        return known[key]

    def forget_data(self) -> None:
        """The data sets may have changed: look at their files again."""
        self._data = {}

    def _sources_of(self, run: PlannedRun) -> dict[str, Any]:
        arm = f"{run.arm}"
        if arm not in self._sources:
            self._sources[arm] = sources_of(run.experiment.params)
        return self._sources[arm]

    def files_of(self, run: PlannedRun) -> Path:
        """The path of a run's files without their endings."""
        return self.folder / "runs" / run.experiment.params["dataset_id"] / run.name

    def _failure_file(self, run: PlannedRun) -> Path:
        return Path(f"{self.files_of(run)}.failure.json")

    def write_plan(self) -> None:
        """Note the plan in the folder.

        Raises:
            UserError: it cannot be written.
        """
        with explain_write_errors(self.plan_file, OTHER_OUT), replacing(self.plan_file) as temporary:
            temporary.write_text(self.plan.to_yaml(), encoding="utf-8")

    def make_way(self, run: PlannedRun) -> None:
        """Before a run: what is there of it and does not count is put aside (records) or removed."""
        files = self.files_of(run)
        record = Path(f"{files}.run.json")
        if record.exists():
            record.replace(f"{record}.old")
        for path in (Path(f"{files}.{kind}") for kind in ("model", "out", "csv")):
            path.unlink(missing_ok=True)
        self.clear_unfinished(run)

    def clear_unfinished(self, run: PlannedRun) -> None:
        """A killed run could not take away its weights and half-written files, which may be large."""
        files = self.files_of(run)
        remove_abandoned(files.parent, again=True)
        for path in files.parent.glob(f".{glob.escape(files.name)}.*"):  # as earlier versions left them
            if path.is_file():
                path.unlink(missing_ok=True)

    def note_failure(self, run: PlannedRun, reason: str, traceback: str = "") -> None:
        """Record that a run failed.

        Raises:
            UserError: it cannot be written.
        """
        path = self._failure_file(run)
        facts = {"key": run.key, "run": str(run), "reason": reason, "traceback": traceback, "data": self.data_of(run)}
        facts |= {"sources": self._sources_of(run), "version": versions().get(OURS)}
        facts |= {"time": time.strftime("%Y-%m-%dT%H:%M:%S")}
        with explain_write_errors(path, OTHER_OUT):
            write_json(path, facts)
        self._failures.setdefault(run.key, {})[path] = facts

    def forget_failure(self, run: PlannedRun) -> None:
        """A run is done that failed before."""
        self._failure_file(run).unlink(missing_ok=True)

    def _keep(self, path: Path, found: Contents, problem_of: Callable[[Any], str]) -> str:
        content = read_json(path)
        problem = problem_of(content)
        if problem:
            self.ignored.append(f"{path} {problem}; it is ignored")
        else:
            key = content["key"] if "key" in content else key_of(content["config"])
            found.setdefault(key, {})[path] = content
        return problem

    def _is_as_now(self, record: Mapping[str, Any], run: PlannedRun) -> bool:
        """Data that is not there cannot be compared; a record that does not say its code is of another."""
        now = self._sources_of(run)
        return self.data_of(run) in (None, record["data"]["sha256"]) and record.get("sources") == now


def _own_first(found: Contents, run: PlannedRun, own: Path) -> list[dict[str, Any]]:
    """The contents with the key of a run, that of its own file before the others."""
    contents = list(found.get(run.key, {}).items())  # a display asks in a thread of its own
    return [content for _, content in sorted(contents, key=lambda item: item[0] != own)]


def _result(run: PlannedRun, record: dict[str, Any]) -> RunResult:
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
    )
