"""`ls`: the runs that are there, and what the cache holds."""

import argparse
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from fuxictr_llm.commands import Commands, new_command
from fuxictr_llm.common.errors import UserError

FOLDERS = ("checkpoints", "leaderboards")


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "list runs (expid, model_id, date, AUC, size), and what the cache holds"
    parser = new_command(commands, "ls", execute, text)
    text = f"where to look for runs (default: {' and '.join(FOLDERS)}, where they are)"
    parser.add_argument("folders", nargs="*", type=Path, metavar="FOLDER", help=text)
    parser.add_argument("--cache", action="store_true", help="list the entries of the cache, each by itself")


def execute(args: argparse.Namespace) -> None:
    """Print the tables."""
    from fuxictr_llm.common.files import cache_dir
    from fuxictr_llm.common.stored import cache_entries, size_text
    from fuxictr_llm.experiment.finished import runs_below

    folders = folders_of(args.folders, FOLDERS)
    runs = [] if args.cache else runs_below(folders)
    if not args.cache:
        print_table(
            ("expid", "run", "date", "valid AUC", "test AUC", "size"),
            [
                (
                    str(run.record.get("expid") or ""),
                    run.name,
                    run.time.replace("T", " ")[:16],
                    _metric(run.metric("valid")),
                    _metric(run.metric("test")),
                    size_text(run.size),
                )
                for run in runs
            ],
        )
        where = ", ".join(map(str, folders)) or "no checkpoints or leaderboards here"
        print(f"{len(runs)} runs, {size_text(sum(run.size for run in runs))} ({where})\n")
    entries = cache_entries()
    if args.cache:
        rows = [(entry.kind, entry.path.name, day(entry.used), size_text(entry.size)) for entry in entries]
        print_table(("kind", "entry", "last used", "size"), rows)
    else:
        kinds = [(kind, [*group]) for kind, group in groupby(entries, key=lambda entry: entry.kind)]
        rows = [
            (kind, str(len(group)), day(max(entry.used for entry in group)), size_text(sum(e.size for e in group)))
            for kind, group in kinds
        ]
        print_table(("cache", "entries", "last used", "size"), rows)
    print(f"{len(entries)} entries, {size_text(sum(entry.size for entry in entries))} ({cache_dir()})")


def folders_of(given: Sequence[Path], default: Sequence[str]) -> list[Path]:
    """The folders that were given, or those of the default that are here.

    Raises:
        UserError: one that was given is no folder.
    """
    for folder in given:
        if not folder.is_dir():
            raise UserError(f"{str(folder)!r} is no folder")
    return list(given) or [Path(name) for name in default if Path(name).is_dir()]


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows below the names of their columns; the last column is set to the right."""
    widths = [max(len(row[place]) for row in (columns, *rows)) for place in range(len(columns))]
    for row in (columns, *rows):
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths[:-1], strict=True)]
        print("  ".join([*cells, row[-1].rjust(widths[-1])]))


def day(seconds: float) -> str:
    """A date and time of this place."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _metric(value: float | None) -> str:
    return "-" if value is None else f"{value:.6f}"
