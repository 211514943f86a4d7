"""A leaderboard's runs in one compressed file, `runs.jsonl.xz`: it is committed beside a table, which is made from it.

JSON lines. The first has the plan, its arms, the facts of the page and the intervals over test users; each further one
a run: the number of its arm, split, seed, key, and its record, or the note on its failure, or neither.
"""

import json
import logging
import lzma
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fuxictr_llm
from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.files import cache_dir, explain_write_errors, read_json, replacing, write_json
from fuxictr_llm.common.run_files import RECORD, run_files
from fuxictr_llm.common.sealed import sealed
from fuxictr_llm.leaderboard.plan.arms import Arm, Repeated
from fuxictr_llm.leaderboard.run.forms import FAILURE_FORM, RECORD_FORM, has_form
from fuxictr_llm.leaderboard.run.results import OTHER_OUT, PLAN_FILE, USERS_FILE, Failure, Results, RunResult, result_of

ARCHIVE, ENDING = "runs.jsonl.xz", ".jsonl.xz"
FORM = 1
OF_THE_DATA = ("sample",)  # of a record: rows of the data set, which may not be passed on
MOST_BYTES = 1_000_000  # of a file that is committed
PLACES = {"<cache>": cache_dir, "<code>": lambda: Path(fuxictr_llm.__file__).parents[1], "~": Path.home}


@dataclass(frozen=True)
class ArchivedRun(Repeated):
    """A planned run, as `PlannedRun`, without the experiment that it was resolved to."""

    arm: Arm
    seed: int
    key: str
    split: int = 0


@dataclass(frozen=True)
class Archive:
    """The content of an archive.

    Attributes:
        plan: the text of its `plan.yaml`.
        facts: of the page, name -> text.
        users: the content of `users.json`: intervals over test users.
        planned: all runs of the plan.
        records: of the finished ones, by position in `planned`.
        notes: on those that failed, likewise.
    """

    plan: str
    facts: Mapping[str, str]
    users: Mapping[str, Any]
    planned: Sequence[ArchivedRun]
    records: Mapping[int, dict[str, Any]]
    notes: Mapping[int, dict[str, Any]]

    def finished(self) -> list[RunResult]:
        """The runs that are done, in the plan's order."""
        return [result_of(self.planned[index], record) for index, record in self.records.items()]

    def failures(self) -> list[Failure]:
        """The runs that failed, in the plan's order."""
        failed = [(self.planned[index], note) for index, note in self.notes.items()]
        return [Failure(run.arm, run.seed, run.key, note["reason"], run.split) for run, note in failed]


def write_archive(results: Results, facts: Mapping[str, str]) -> Path:
    """Write the archive of a folder's plan into the folder; its path.

    Args:
        facts: of the page.

    Raises:
        UserError: it cannot be written.
    """
    path = results.folder / ARCHIVE
    lines = "".join(json.dumps(_without_places(line), ensure_ascii=False) + "\n" for line in _lines(results, facts))
    if (here := str(Path.cwd())) in lines:
        logging.warning("%s names this machine's folder %s; with relative paths it would not", path, here)
    content = lzma.compress(lines.encode(), preset=9)
    if len(content) > MOST_BYTES:
        logging.warning(
            "%s has %d bytes, more than the %d that are fit to be committed", path, len(content), MOST_BYTES
        )
    with explain_write_errors(path, OTHER_OUT), replacing(path) as temporary:
        temporary.write_bytes(content)
    return path


def _lines(results: Results, facts: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    plan = results.plan
    arms = [{**asdict(arm), "settings": dict(arm.settings)} for arm in plan.arms]
    users = read_json(results.folder / USERS_FILE) or {}
    yield {"form": FORM, "plan": plan.to_yaml(), "arms": arms, "facts": dict(facts), "users": users}
    for run in plan.runs():
        line = {"arm": plan.arms.index(run.arm), "split": run.split, "seed": run.seed, "key": run.key}
        if record := results.record_of(run):
            line["record"] = sealed(
                _without_places({key: value for key, value in record.items() if key not in OF_THE_DATA})
            )
        elif failure := results.failure_of(run):
            line["failure"] = failure
        yield line


def _without_places(value: Any) -> Any:
    """The same with names in place of this machine's folders, on which no part of a table depends."""
    if isinstance(value, dict):
        return {key: _without_places(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_places(each) for each in value]
    if isinstance(value, str) and Path(value).is_absolute():
        for name, place in PLACES.items():
            if Path(value).is_relative_to(place()):
                return f"{name}/{Path(value).relative_to(place()).as_posix()}"
    return value


def read_archive(path: Path | str) -> Archive:
    """The archive in a file.

    Raises:
        UserError: it is not there, is damaged, or is none.
    """
    try:
        head, *lines = [json.loads(line) for line in lzma.decompress(Path(path).read_bytes()).splitlines()]
        if head["form"] != FORM:
            raise UserError(f"{str(path)!r} is an archive of another version (form {head['form']}, not {FORM})")
        arms = [Arm(**arm) for arm in head["arms"]]
        planned = [ArchivedRun(arms[line["arm"]], line["seed"], line["key"], line["split"]) for line in lines]
        records, notes = (
            {index: line[kind] for index, line in enumerate(lines) if kind in line} for kind in ("record", "failure")
        )
        for form, found in ((RECORD_FORM, records), (FAILURE_FORM, notes)):
            if damaged := [index for index, content in found.items() if not has_form(form, content)]:
                raise ValueError(f"the record of run {damaged[0]} is not whole")
        archive = Archive(head["plan"], head["facts"], head["users"], planned, records, notes)
        archive.finished(), archive.failures()  # whose parts are there
        return archive
    except OSError as error:
        raise UserError(f"{str(path)!r} cannot be read: {reason_of(error)}") from error
    except (lzma.LZMAError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f"{str(path)!r} is no archive of runs, or is damaged ({reason_of(error)})") from error


def holds(folder: Path, archive: Archive) -> bool:
    """Whether a folder has the plan of an archive, or none."""
    plan = folder / PLAN_FILE
    return not plan.is_file() or plan.read_text(encoding="utf-8") == archive.plan


def unpack(archive: Archive, path: Path, folder: Path) -> None:
    """Put the plan, the records and the archive itself into a leaderboard's folder; what is there stays.

    Raises:
        UserError: the folder has another plan, or cannot be written to.
    """
    if not holds(folder, archive):
        raise UserError(f"{str(folder)!r} holds another leaderboard; {OTHER_OUT}")
    with explain_write_errors(folder, OTHER_OUT):
        for index, record in archive.records.items():
            name = record.get("model_id", archive.planned[index].key)
            place = Path(f"{run_files(folder / 'runs' / record['config']['dataset_id'], name)}{RECORD}")
            if place.resolve().parents[2] != (folder / "runs").resolve():
                raise UserError(f"{str(path)!r} is damaged: run {index} has the name {name!r}")
            if not place.exists():
                write_json(place, record)
        if archive.users and not (folder / USERS_FILE).exists():
            write_json(folder / USERS_FILE, archive.users)
        if path.resolve() != (folder / ARCHIVE).resolve():
            with replacing(folder / ARCHIVE) as temporary:
                temporary.write_bytes(path.read_bytes())
        with replacing(folder / PLAN_FILE) as temporary:
            temporary.write_text(archive.plan, encoding="utf-8")
