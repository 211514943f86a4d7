"""The folder of a leaderboard: no plan writes over the plan and the tables of another one.

The first plan on some data sets has `leaderboards/<data sets>`. A plan with all runs of that one, as with more seeds,
goes on there; any other has `leaderboards/<data sets>-<digest>`, and takes what it can of the runs that are finished.
"""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of, explain_write_errors, replacing
from fuxictr_llm.common.formats import read_yaml
from fuxictr_llm.common.run_files import RECORD
from fuxictr_llm.experiment.predictions import PREDICTIONS
from fuxictr_llm.leaderboard.plan.names import default_folder
from fuxictr_llm.leaderboard.plan.plan import Plan
from fuxictr_llm.leaderboard.run.lock import locked_folder
from fuxictr_llm.leaderboard.run.results import OTHER_OUT, PLAN_FILE, Results
from fuxictr_llm.leaderboard.run.tuning import TUNING_FOLDER, search_in

TABLES = ("table.md", "table.csv", "table.tex", "table.html", "paper.tex", "runs.jsonl.xz")
KINDS = (".log", ".csv", PREDICTIONS, RECORD)  # files of a finished run, its record last
Search = Mapping[str, Any]


def folder_of(plan: Plan, names: Iterable[str], search: Search | None = None) -> Path:
    """The folder of a plan, where the user names none.

    Args:
        names: of its data sets, or that of its file.
        search: as of `search_of`, where its settings are searched first.
    """
    first = default_folder(names)
    return first if goes_on_in(first, plan, search) else beside(first, [plan.to_yaml(), search])


def beside(first: Path, asked: Any) -> Path:
    """The folder of what was asked for, where that of the first plan is another one's."""
    return first.with_name(f"{first.name}-{digest_of(asked)[:8]}")


def check_folder(folder: Path, plan: Plan, search: Search | None = None) -> None:
    """Check that a plan loses nothing of what a folder holds.

    Raises:
        UserError: the folder is another leaderboard's.
    """
    if not goes_on_in(folder, plan, search):
        raise UserError(
            f"{str(folder)!r} holds another leaderboard, whose table would be lost; {OTHER_OUT} "
            f"(--from {folder / PLAN_FILE} goes on with that one)"
        )


def goes_on_in(folder: Path, plan: Plan, search: Search | None = None) -> bool:
    """Whether a folder holds no plan, or one all of whose runs are the plan's, too, found by the same search."""
    before, found_by = folder / PLAN_FILE, search_in(folder / TUNING_FOLDER)
    if search is not None and found_by not in (None, search):
        return False
    if not before.is_file():
        return search is not None or found_by is None
    if search is not None and found_by is None:
        return False
    if before.read_text(encoding="utf-8") == plan.to_yaml():
        return True
    # What a search finds is not known yet: the arms have other settings now.
    own, theirs = _runs(plan, bool(search)), _runs_in(before, plan, bool(search))
    return theirs is not None and theirs <= own


def _runs(plan: Plan, names_alone: bool) -> set[tuple[str, str]]:
    return {(str(run), "" if names_alone else run.key) for run in plan.runs()}


def _runs_in(file: Path, plan: Plan, names_alone: bool) -> set[tuple[str, str]] | None:
    """Those of the plan in a file; None where it cannot be read, or is of another zoo, which reading it would load."""
    try:
        same_zoo = read_yaml(file).get("zoo") == plan.zoo
        return _runs(Plan.read(file, plan.gpu), names_alone) if same_zoo else None
    except UserError:
        return None


def others_beside(folder: Path, names: Iterable[str]) -> list[Path]:
    """The folders of other plans on these data sets."""
    first = default_folder(names)
    found = [first, *sorted(first.parent.glob(f"{first.name}-????????"))]
    return [each for each in found if each != folder and (each / "runs").is_dir()]


def take_finished(results: Results, others: Iterable[Path]) -> None:
    """Copy the finished runs of a plan that other folders have; whether they still count is for `Results` to say.

    Raises:
        UserError: the folder is in use, or cannot be written to.
    """
    found = []
    for run in results.plan.runs():
        own = results.files_of(run)
        theirs = [other / own.relative_to(results.folder) for other in others]
        with_record = [files for files in theirs if Path(f"{files}{RECORD}").is_file()]
        if with_record and not Path(f"{own}{RECORD}").exists():
            found.append((with_record[0], own))
    if not found:
        return
    with locked_folder(results.folder), explain_write_errors(results.folder, OTHER_OUT):
        for files, own in found:
            for kind in KINDS:
                if Path(f"{files}{kind}").is_file():
                    with replacing(f"{own}{kind}") as temporary:
                        shutil.copyfile(f"{files}{kind}", temporary)
    results.read()


def is_made(results: Results) -> bool:
    """Whether all of a plan has run, and its tables were made since."""
    files = [results.folder / name for name in TABLES]
    if not results.plan_file.is_file() or not all(file.is_file() for file in files):
        return False
    if results.plan_file.read_text(encoding="utf-8") != results.plan.to_yaml() or results.to_do():
        return False
    if any(results.data_of(run) is None for run in results.plan.runs()):  # made again, it may be other data
        return False
    made = min(file.stat().st_mtime for file in files)
    notes = (results.folder / "runs").glob("*/*/*.json")
    return all(file.stat().st_mtime <= made for file in [results.plan_file, *notes])
