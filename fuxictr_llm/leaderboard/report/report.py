"""The content of a leaderboard's page as texts and rounded numbers; tables.py writes it in each format."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from fuxictr_llm.leaderboard.plan.arms import text_of_repeat
from fuxictr_llm.leaderboard.report import LEVEL, PairedGain
from fuxictr_llm.leaderboard.report.cells import (
    NOTHING,
    gain_cell,
    kind_of,
    p_cell,
    parameters_cell,
    seconds_cell,
    seeds_cell,
    share_cell,
    smallest_cell,
    spread_cell,
    users_cell,
)
from fuxictr_llm.leaderboard.report.costs import cells_of_costs
from fuxictr_llm.leaderboard.report.evidence import ArmRow
from fuxictr_llm.leaderboard.report.notes import notes_on
from fuxictr_llm.leaderboard.report.overall import Overall, over_backbones
from fuxictr_llm.leaderboard.report.power import pilot_of, pilots_of_rows
from fuxictr_llm.leaderboard.report.teachers import HEADS, lines_of_teachers
from fuxictr_llm.leaderboard.report.users import NO_USERS, Interval, OverUsers
from fuxictr_llm.leaderboard.run.results import Failure, RunResult

BY_USERS, COULD_SHOW = "by test users [95 %]", "could show"
WORD_COLUMNS = ("backbone", "arm", "seeds", "verdict", "rows", "placebo")  # columns of words; the others hold numbers


class Line(NamedTuple):
    """A line of a table: its cells, among them the verdict; its `kind` (plain, method, control); what it belongs to."""

    cells: list[str]
    verdict: str = ""
    kind: str = "method"
    group: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a report in texts."""

    title: str
    heads: list[str]
    lines: list[Line]


@dataclass(frozen=True)
class Report:
    """The content of a leaderboard's page.

    Attributes:
        tables: for each data set one of its rows; before it, where there are several backbones, one over all of them.
        troubles: a line for each run that failed, and for each arm with seeds that have not run.
        notes: how to read the tables.
        facts: how they were made: name -> text.
    """

    tables: list[Table]
    troubles: list[str]
    notes: list[str]
    facts: dict[str, str]


def make_report(
    rows: Sequence[ArmRow],
    results: Sequence[RunResult] = (),
    failures: Iterable[Failure] = (),
    facts: Mapping[str, str] | None = None,
    users: Mapping[str, OverUsers] | None = None,
) -> Report:
    """The report of a table's rows.

    Args:
        rows: from `summarize`.
        results, failures: the runs that the rows are of.
        facts: the command, the plan's digest and what else the reader should know; the date, versions and the data's
            digests are added.
        users: of each data set, intervals that cover the test sample.
    """
    tables, overall = [], over_backbones(rows, results)
    notes = notes_on(rows, results, overall, users or {}, tuned=bool((facts or {}).get("tuning")))
    for dataset in dict.fromkeys(row.dataset for row in rows):
        lines = [line for line in overall if line.dataset == dataset]
        own = [row for row in rows if row.dataset == dataset]
        intervals = (users or {}).get(dataset, NO_USERS).intervals
        several = any(len(line.backbones) > 1 for line in lines)
        if several:
            tables.append(_table_over_backbones(dataset, lines, intervals))
        tables.append(_table_of_rows(dataset, own, {} if several else intervals))
        if any(row.is_method for row in own):
            tables.append(_table_of_costs(dataset, own))
        if lines_of_nets := lines_of_teachers(dataset, results):
            tables.append(Table(f"{dataset}, gain networks", [*HEADS], [Line(cells) for cells in lines_of_nets]))
    return Report(tables, _troubles(rows, failures), notes, _facts(results, facts or {}))


def _table_of_rows(dataset: str, rows: Sequence[ArmRow], intervals: Mapping[tuple[str, str], Interval]) -> Table:
    columns = _columns(rows, intervals)
    lines = [Line([cell(row) for cell in columns.values()], row.verdict, kind_of(row), row.backbone) for row in rows]
    return Table(dataset, list(columns), lines)


def _table_of_costs(dataset: str, rows: Sequence[ArmRow]) -> Table:
    heads, cells = cells_of_costs(rows)
    lines = [Line(cells[row.backbone, row.arm], "", kind_of(row), row.backbone) for row in rows if not row.control]
    return Table(f"{dataset}: gains and what they cost", heads, lines)


def _columns(
    rows: Sequence[ArmRow], intervals: Mapping[tuple[str, str], Interval]
) -> dict[str, Callable[[ArmRow], str]]:
    """Head of a column -> the cell of a row; without columns in which all cells would be empty.

    Args:
        intervals: over test users; none where the rows are of several backbones.
    """
    pilots = pilots_of_rows(rows)
    methods = {(row.backbone, row.method): row for row in rows if kind_of(row) == "method"}

    def over_control(row: ArmRow) -> PairedGain | None:
        method = methods.get((row.backbone, row.method))
        return method.over_controls.get(row.control) if method and row.control else None

    def p_of(row: ArmRow) -> str:
        gain = over_control(row) if row.control else row.over_plain
        return p_cell(gain.p) if gain else NOTHING

    columns: dict[str, Callable[[ArmRow], str]] = {
        "backbone": lambda row: row.backbone,
        "arm": lambda row: row.arm,
        "AUC": lambda row: spread_cell(row.test.get("AUC")),
        "validation AUC": lambda row: spread_cell(row.valid.get("AUC")),
        "gain over plain [95 %]": lambda row: gain_cell(row.over_plain),
        "verdict": lambda row: ": ".join(filter(None, (row.verdict, row.why))) or NOTHING,
        "method over control [95 %]": lambda row: gain_cell(over_control(row)),
        BY_USERS: lambda row: users_cell(intervals, row.arm, row.method, row.control),
        "p": p_of,
        "p (Holm)": lambda row: p_cell(row.p),
        COULD_SHOW: lambda row: smallest_cell(pilots.get((row.dataset, row.backbone, row.arm))),
        "relative AUC": lambda row: share_cell(row.over_plain.relative if row.over_plain else None),
        "RelaImpr": lambda row: share_cell(row.over_plain.rela_impr if row.over_plain else None),
        "gAUC": lambda row: spread_cell(row.test.get("gAUC")),
        "logloss": lambda row: spread_cell(row.test.get("logloss")),
        "seeds": seeds_cell,
        "training s": lambda row: seconds_cell(row.seconds.get("train")),
        "language model s": lambda row: seconds_cell(row.seconds.get("language_model")),
        "parameters": lambda row: parameters_cell(row.parameters),
        "inference": lambda row: NOTHING if row.inference_ratio is None else f"{row.inference_ratio:.2f}x",
    }
    if any("AUC" in row.test for row in rows):
        del columns["validation AUC"]
    needed = {"AUC", *WORD_COLUMNS}
    return {head: cell for head, cell in columns.items() if head in needed or any(cell(row) != NOTHING for row in rows)}


def _table_over_backbones(
    dataset: str, overall: Sequence[Overall], intervals: Mapping[tuple[str, str], Interval]
) -> Table:
    heads = ["arm", "verdict", "mean gain over plain [95 %]", "method over control [95 %]", BY_USERS, "p", COULD_SHOW]
    heads += ["better on", "backbones", "rows"]
    lines = []
    for arm in overall:
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in arm.verdicts.items() if count) or NOTHING
        gains = gain_cell(arm.gain), gain_cell(arm.over_control)
        tested = arm.over_control if arm.control else arm.gain
        kind = arm.verdict.kind if arm.verdict else ""
        shown = f"{kind}: {arm.verdict.why}" if arm.verdict else NOTHING
        counts = str(arm.better), str(len(arm.backbones))
        smallest = smallest_cell(pilot_of(arm.claim, LEVEL))
        by_users = users_cell(intervals, arm.arm, arm.method, arm.control)
        cells = [arm.arm, shown, *gains, by_users, p_cell(tested.p) if tested else NOTHING, smallest, *counts, verdicts]
        lines.append(Line(cells, kind, "control" if arm.control else "method", arm.method))
    return Table(f"{dataset}: the methods, over all backbones", heads, lines)


def _troubles(rows: Iterable[ArmRow], failures: Iterable[Failure]) -> list[str]:
    failed = {(run.arm.dataset, run.arm.backbone, run.arm.label, run.repeat): run for run in failures}
    lines = []
    for row in rows:
        name = f"{row.dataset} {row.backbone} {row.arm}"
        for repeat in row.failed:
            failure = failed[row.dataset, row.backbone, row.arm, repeat]
            lines.append(f"{name}, {failure.repeat_text}: failed: {' '.join(failure.reason.split())}")
        if row.missing:
            lines.append(f"{name}: not run at {'; '.join(map(text_of_repeat, row.missing))}")
    return lines


def _facts(results: Sequence[RunResult], facts: Mapping[str, str]) -> dict[str, str]:
    texts = {**facts, "date": facts.get("date") or f"{datetime.now():%Y-%m-%d %H:%M}"}
    versions: dict[str, dict[str, None]] = {}
    data: dict[str, dict[str, None]] = {}
    for run in results:
        for package, version in (run.record.get("versions") or {}).items():
            versions.setdefault(package, {})[version] = None
        data.setdefault(run.arm.dataset, {})[_digests_text((run.record.get("data") or {}).get("sha256"))] = None
    texts["versions"] = ", ".join(f"{package} {' and '.join(several)}" for package, several in versions.items())
    texts |= {f"data {dataset} (sha256)": " or ".join(several) for dataset, several in data.items()}
    return {name: " ".join(str(text).split()) for name, text in texts.items() if text}


def _digests_text(digests: object) -> str:
    if not isinstance(digests, Mapping):
        return str(digests or "unknown")
    lists = {split: [files] if isinstance(files, str) else map(str, files) for split, files in digests.items()}
    return ", ".join(f"{split} {' '.join(files)}" for split, files in lists.items())
