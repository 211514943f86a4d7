"""`clean`: remove what the cache holds and what runs left."""

import argparse
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from fuxictr_llm.commands import Commands, new_command
from fuxictr_llm.commands.ls import day, folders_of, print_table
from fuxictr_llm.common.errors import UserError, unknown

if TYPE_CHECKING:
    from fuxictr_llm.common.stored import Entry

FOLDERS = ("checkpoints",)
MOST_LINES = 30  # of a kind
HOURS = {"h": 1, "d": 24, "w": 7 * 24}


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "list what would be removed of the cache and of unfinished runs, and remove it with --yes"
    parser = new_command(commands, "clean", execute, text)
    text = "where to look for runs and what unfinished ones left (default: checkpoints)"
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help=text)
    text = "these kinds alone: one that `ls` shows of the cache, unfinished, or runs (default: all but runs)"
    parser.add_argument("--kind", nargs="+", default=[], metavar="KIND", help=text)
    text = "what was used last before so long: 12h, 30d, 8w (of a run: when it ended)"
    parser.add_argument("--older-than", metavar="AGE", help=text)
    parser.add_argument("--yes", action="store_true", help="remove it; without this, it is listed alone")


def execute(args: argparse.Namespace) -> None:
    """List what fits, and with `--yes` remove it."""
    from fuxictr_llm.common.stored import size_text

    before = time.time() - seconds_of_age(args.older_than) if args.older_than else float("inf")
    found = [(entry, remove) for entry, remove in _found(args) if entry.used < before]
    print_table(("kind", "what", "last used", "size"), [*_rows([entry for entry, _ in found])])
    if not args.yes:
        print(f"{len(found)} things, {size_text(sum(entry.size for entry, _ in found))}; --yes removes them")
        return
    removed = []
    for entry, remove in found:
        try:
            if remove():
                removed.append(entry)
            else:
                print(f"left, as a process uses it: {entry.path}")
        except OSError as error:  # another user's
            print(f"left, as it cannot be removed ({error.strerror}): {entry.path}")
    print(f"removed {len(removed)} things, {size_text(sum(entry.size for entry in removed))}")


def _rows(entries: Sequence["Entry"]) -> Iterator[tuple[str, str, str, str]]:
    """A line for each, or one for all of a kind of which there are many."""
    from fuxictr_llm.common.stored import size_text

    for kind, group in groupby(entries, key=lambda entry: entry.kind):
        of_kind = [*group]
        if len(of_kind) > MOST_LINES:
            used, size = max(entry.used for entry in of_kind), sum(entry.size for entry in of_kind)
            yield kind, f"{len(of_kind)} in {of_kind[0].path.parent}", day(used), size_text(size)
            continue
        yield from ((kind, str(entry.path), day(entry.used), size_text(entry.size)) for entry in of_kind)


def seconds_of_age(text: str) -> float:
    """Seconds of `12h`, `30d` or `8w`.

    Raises:
        UserError: it is something else.
    """
    match = re.fullmatch(r"(\d{1,6})([hdw])", text)
    if not match:
        raise UserError(f"--older-than {text!r} is no age; give hours, days or weeks, as 12h, 30d or 8w")
    return int(match[1]) * HOURS[match[2]] * 3600.0


def _found(args: argparse.Namespace) -> Iterator[tuple["Entry", Callable[[], bool]]]:
    """What is of the kinds that were asked for, and what removes each."""
    from functools import partial

    from fuxictr_llm.common.stored import Entry, cache_entries, entry_of, remove
    from fuxictr_llm.experiment.finished import RUNS, UNFINISHED, remove_unfinished, runs_below, unfinished_below

    folders, entries = folders_of(args.folders, FOLDERS), cache_entries()
    known = {*(entry.kind for entry in entries), RUNS, UNFINISHED}
    _check_kinds(args.kind, known)
    kinds = {*args.kind} or known - {RUNS}
    yield from ((entry, partial(remove, entry)) for entry in entries if entry.kind in kinds)
    if UNFINISHED in kinds:
        yield from ((entry, partial(remove_unfinished, entry)) for entry in unfinished_below(folders))
    if RUNS in kinds:
        for run in runs_below(folders):
            yield Entry(RUNS, Path(run.name), run.size, entry_of(RUNS, run.files[0]).used), run.remove


def _check_kinds(given: Iterable[str], known: Iterable[str]) -> None:
    for kind in given:
        if kind not in known:
            raise unknown("kind", kind, known, "--kind")
