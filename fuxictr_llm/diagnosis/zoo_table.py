"""Which class of a zoo can do what, from real runs: each class is looked at in a process that may fail or hang.

Shape symbols: `D` embedding dim, `R` width of the representation, `T` tasks.
"""

import math
import multiprocessing
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib.metadata import version
from multiprocessing.connection import Connection, wait
from pathlib import Path

from fuxictr_llm.common.errors import UserError

COLUMNS = ("backbone", "without", "embeddings", "T", "R", "LLaCTR", "ELEC")
METHODS = ("LLaCTR", "ELEC")
LEGEND = (
    "On tiny data and small models. without: types of features that the class itself cannot take; embeddings: of how "
    "many fields they are seen, and their width; T: tasks; R: width of the representation in front of the "
    "logit, of several layers side by side; in brackets, where there is none: of the field embeddings in its place."
)


@dataclass(frozen=True)
class Row:
    """What was found of a class.

    Attributes:
        backbone: its name.
        without: types of features that the class cannot take.
        embeddings: how many of its fields' embeddings are seen, and D.
        T: how many logits; and how the model makes its predictions where it hides them.
        R: the parts of the representation; in brackets, where the field embeddings take its place.
        LLaCTR, ELEC: `works`, `works without ...`, or why not.
    """

    backbone: str
    without: str = ""
    embeddings: str = ""
    T: str = ""
    R: str = ""
    LLaCTR: str = ""
    ELEC: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """For a table, which has no room for what `notes` says."""
        short = {method: "in part" if self.works_with(method) else "no" for method in self.with_notes}
        return tuple((asdict(self) | short).values())

    @property
    def with_notes(self) -> list[str]:
        """The methods with which it works in part or not at all."""
        return [method for method in METHODS if getattr(self, method) != "works"]

    def without_path(self, path: str) -> "Row":
        """The row whose reasons do not have the path: they are read elsewhere."""
        return replace(self, **{method: getattr(self, method).replace(path, "") for method in METHODS})

    def works_with(self, method: str) -> bool:
        """Whether it trains with the method, or a part of it."""
        return getattr(self, method).startswith("works")


def look_at(name: str) -> Row:
    """The row of a backbone, in this process."""
    import torch

    from fuxictr_llm.diagnosis.doctor import anatomy_of, quiet, run_check
    from fuxictr_llm.diagnosis.tiny import tiny_case
    from fuxictr_llm.registry import find_backbone

    torch.set_num_threads(1)  # other processes do the same
    try:
        with quiet():
            case = tiny_case(find_backbone(name))
        anatomy = anatomy_of(case)
    except UserError as error:
        return failed(name, str(error))
    total = case.feature_map.num_fields
    hidden = "" if all(anatomy.activations) else ", its own sigmoid"
    parts = " + ".join(map(str, anatomy.widths)) or (f"({sum(anatomy.dims)})" if anatomy.dims else "none")
    return Row(
        name,
        ", ".join(case.left_out),
        f"{len(anatomy.fields)}/{total}" + (f", D {anatomy.embedding_dim}" if anatomy.fields else ""),
        f"{len(anatomy.tasks)}{hidden}",
        parts,
        *(run_check(method, case).text for method in METHODS),
    )


def failed(name: str, reason: str) -> Row:
    """The row of a backbone that cannot be looked at."""
    return Row(name, **dict.fromkeys(METHODS, reason))


def look_at_all(
    names: Sequence[str], jobs: int, timeout: float = 120.0, look: Callable[[str], Row] = look_at
) -> Iterator[Row]:
    """The rows of the backbones, in the order in which they are done; `jobs` processes work at the same time.

    Args:
        timeout: seconds after which a class is given up; the start of a process is not counted.
        look: what a process does with a name.
    """
    waiting, workers = list(reversed(names)), []
    try:
        while waiting or any(worker.name for worker in workers):
            workers += [_Worker(look) for _ in range(min(jobs - len(workers), len(waiting)))]
            for worker in workers:
                if waiting and worker.name is None:
                    worker.give(waiting.pop())
            yield from _done(workers, timeout)
            workers = [worker for worker in workers if worker.is_usable]
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process that looks at one class after the other; a new one takes the place of one that is lost."""

    def __init__(self, look: Callable[[str], Row]):
        # Spawned: a forked process would share torch's threads and the locks of whatever runs here.
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, look), daemon=True)
        self.process.start()
        theirs.close()
        self.name: str | None = None
        self.since = math.inf  # until it says that it has started, which takes long where much else runs
        self.is_usable = True

    def give(self, name: str) -> None:
        self.name, self.since = name, max(self.since, time.monotonic())
        self.connection.send(name)

    def row(self, timeout: float) -> Row | None:
        """The row of the class that was given, where it is done or given up."""
        if self.connection.poll():
            try:
                row = self.connection.recv()
                if row is None:
                    self.since = time.monotonic()
                    return None
            except EOFError:
                self.end()
                row = failed(self.name, f"its process ended with exit code {self.process.exitcode}")
        elif time.monotonic() - self.since > timeout:
            self.end()
            row = failed(self.name, f"not done after {timeout:.0f} s")
        else:
            return None
        self.name = None
        return row

    def end(self) -> None:
        self.is_usable = False
        self.process.kill()
        self.process.join()


def _done(workers: Sequence[_Worker], timeout: float) -> Iterator[Row]:
    busy = [worker for worker in workers if worker.name]
    wait([worker.connection for worker in busy], timeout=1.0)
    for worker in busy:
        row = worker.row(timeout)
        if row is not None:
            yield row


def _serve(connection: Connection, look: Callable[[str], Row]) -> None:
    if look is look_at:
        import fuxictr_llm.diagnosis.doctor  # noqa: F401 (what takes longest)
    connection.send(None)  # started
    while True:
        try:
            name = connection.recv()
        except EOFError:
            return
        try:
            row = look(name)
        except Exception as error:  # anyone's file can fail in any way
            row = failed(name, f"{type(error).__name__}: {error}")
        connection.send(row)


def made_with(zoo: Path | None) -> str:
    """A line that says when and with what the table was made; a checkout goes by its commit, where it is one of git."""
    with_what = ", ".join(f"{name} {version(name)}" for name in ("fuxictr-llm", "fuxictr", "torch"))
    line = f"{date.today().isoformat()}, {with_what}"
    return f"{line}, checkout {_commit(zoo) or 'without git'}" if zoo else line


def _commit(folder: Path) -> str:
    command = ["git", "-C", str(folder), "log", "-1", "--format=%h of %cs"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def as_markdown(rows: Sequence[Row], made: str, title: str) -> str:
    """The table as a Markdown document."""
    lines = [f"# {title}", "", f"{summary(rows)} ({made}).", "", LEGEND, ""]
    lines += [_line(COLUMNS), _line(["---"] * len(COLUMNS)), *(_line(row.cells) for row in rows), ""]
    lines += [f"- {note}" for note in notes(rows)]
    return "\n".join([*lines, ""])


def notes(rows: Sequence[Row]) -> list[str]:
    """A line for each reason why classes work in part or not at all: which, with which method, and why."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        by_reason: dict[str, list[str]] = {}
        for method in row.with_notes:
            by_reason.setdefault(getattr(row, method), []).append(method)
        for reason, methods in by_reason.items():
            found.setdefault((" and ".join(methods), reason), []).append(row.backbone)
    return [f"{', '.join(names)} with {methods}: {reason}" for (methods, reason), names in found.items()]


def summary(rows: Sequence[Row]) -> str:
    """How many classes work with each method."""
    counts = [f"{sum(row.works_with(method) for row in rows)} with {method}" for method in METHODS]
    return f"Of {len(rows)} classes train {' and '.join(counts)}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
