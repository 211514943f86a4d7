"""The table of a zoo: which class works with which method. Each class is tried in a process that may fail or hang.

Shape symbols: `D` embedding dim, `R` width of the representation, `T` tasks.
"""

import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path

from fuxictr_llm.common.formats import table_of
from fuxictr_llm.common.processes import Lost, Pool

GRAPH = "ONNX"  # stands among the methods, where it was asked for
COLUMNS = ("backbone", "without", "embeddings", "T", "R")  # and one for each method
LEGEND = (
    "On tiny data and small models. without: types of features that the class itself cannot take; embeddings: of how "
    "many fields they are seen, and their width; T: tasks; R: width of the representation in front of the "
    "logit, of several layers side by side; in brackets, where there is none: of the field embeddings in its place."
)


@dataclass(frozen=True)
class ZooRow:
    """What was seen of a class.

    Attributes:
        backbone: its name.
        methods: method -> `works`, `works without ...`, `not tried: ...`, or why it does not work; and `GRAPH` ->
            whether the class, plain and with each method, can be exported as ONNX.
        without: types of features that the class cannot take.
        embeddings: how many of its fields' embeddings are seen, and D.
        tasks: T; and how the model makes its predictions where it hides its logits.
        representation: the parts of R; in brackets, where the field embeddings take its place.
    """

    backbone: str
    methods: Mapping[str, str]
    without: str = ""
    embeddings: str = ""
    tasks: str = ""
    representation: str = ""

    @property
    def cells(self) -> tuple[str, ...]:
        """For a table, which has no room for what `notes` says."""
        own = (self.backbone, self.without, self.embeddings, self.tasks, self.representation)
        return own + tuple(map(_short, self.methods.values()))

    @property
    def with_notes(self) -> list[str]:
        """The methods with which it works in part or not at all, and those that could not be tried."""
        return [method for method, text in self.methods.items() if text != "works"]

    def without_path(self, path: str) -> "ZooRow":
        """The row whose reasons do not have the path: they are read elsewhere."""
        return replace(self, methods={method: text.replace(path, "") for method, text in self.methods.items()})

    def works_with(self, method: str) -> bool:
        """Whether it trains with the method, or a part of it."""
        return self.methods[method].startswith("works")


def _short(text: str) -> str:
    if text.startswith("works"):
        return "works" if text == "works" else "in part"
    return "not tried" if text.startswith("not tried") else "no"


def failed(name: str, methods: Iterable[str], reason: str) -> ZooRow:
    """The row of a backbone that cannot be looked at."""
    return ZooRow(name, dict.fromkeys(methods, reason))


def look_at_all(
    names: Sequence[str],
    look: Callable[[str], ZooRow],
    methods: Sequence[str],
    jobs: int,
    timeout: float = 120.0,
    preload: Sequence[str] = (),
) -> Iterator[ZooRow]:
    """The rows of the backbones, in the order in which they are done; `jobs` processes work at the same time.

    Args:
        look: what a process does with a name.
        methods: the columns of a class for which no process has an answer.
        timeout: seconds after which a class is given up; the start of a process is not counted.
        preload: modules that every process needs.
    """
    with Pool[str, ZooRow](jobs, preload, timeout) as pool:
        waiting = list(reversed(names))
        while waiting or len(pool):
            while waiting and pool.has_room:
                name = waiting.pop()
                pool.start(name, _row_of, name, look, methods)
            for name, row in pool.wait():
                yield failed(name, methods, row.reason) if isinstance(row, Lost) else row


def _row_of(name: str, look: Callable[[str], ZooRow], methods: Sequence[str]) -> ZooRow:
    try:
        return look(name)
    except Exception as error:  # anyone's file can fail in any way
        return failed(name, methods, f"{type(error).__name__}: {error}")


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


def as_markdown(rows: Sequence[ZooRow], made: str, title: str) -> str:
    """The table as a Markdown document."""
    table = table_of(columns_of(rows), [row.cells for row in rows])
    lines = [f"# {title}", "", f"{summary(rows)} ({made}).", "", LEGEND, "", table, ""]
    lines += [f"- {note}" for note in notes(rows)]
    return "\n".join([*lines, ""])


def columns_of(rows: Sequence[ZooRow]) -> tuple[str, ...]:
    """The headings of the table."""
    return (*COLUMNS, *_methods_of(rows))


def _methods_of(rows: Sequence[ZooRow]) -> list[str]:
    return list(rows[0].methods) if rows else []


def notes(rows: Sequence[ZooRow]) -> list[str]:
    """A line for each reason why classes work in part or not at all: which, with which method, and why."""
    backbones: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        by_reason: dict[str, list[str]] = {}
        for method in row.with_notes:
            by_reason.setdefault(row.methods[method], []).append(method)
        for reason, methods in by_reason.items():
            backbones.setdefault((_listed(methods), reason), []).append(row.backbone)
    return [f"{', '.join(names)} with {methods}: {reason}" for (methods, reason), names in backbones.items()]


def summary(rows: Sequence[ZooRow]) -> str:
    """How many classes work with each method."""
    counts = {method: sum(row.works_with(method) for row in rows) for method in _methods_of(rows)}
    graphs = f"; {counts.pop(GRAPH)} can be exported as {GRAPH}" if GRAPH in counts else ""
    return f"Of {len(rows)} classes train {_listed([f'{count} with {name}' for name, count in counts.items()])}{graphs}"


def _listed(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))
