"""The page of a leaderboard: HTML that loads nothing, fits a phone, and is light or dark as the reader's screen is.

While runs are going it says how far they are, and asks the browser to load it again every `REFRESH` seconds.
"""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple
from urllib.parse import quote

from fuxictr_llm.leaderboard.report.cells import NOTHING, seconds_cell
from fuxictr_llm.leaderboard.report.page_assets import SCRIPT, STYLE
from fuxictr_llm.leaderboard.report.report import WORD_COLUMNS, Line, Report, Table
from fuxictr_llm.leaderboard.report.run_list import RunLine
from fuxictr_llm.leaderboard.report.verdicts import VERDICTS
from fuxictr_llm.leaderboard.run.progress import Snapshot, Standing, duration_text

# For those who do not see the colours of the verdicts.
MARKS = dict(zip(VERDICTS, ("✔", "≈", "✘", "?"), strict=True))
REFRESH = 10  # seconds
MOST_BEST = 5  # arms of a data set that are named as the best so far
# The page can do nothing but show itself, whatever stands in a name.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
HEADS_OF_RUNS = ("data set", "backbone", "arm", "run", "state", "AUC", "seconds", "files")
WORDS = (*WORD_COLUMNS, "data set", "run", "state", "files")


class State(NamedTuple):
    """What a page says of runs that are going.

    Attributes:
        best: the arms of each data set, the best first.
        time: when this was so.
        note: what the reader should know besides.
        goes_on: whether there will be a newer page.
    """

    snapshot: Snapshot
    best: Mapping[str, Sequence[Standing]]
    time: str
    note: str = ""
    goes_on: bool = True


def to_html(
    report: Report,
    pictures: Mapping[str, bytes] | None = None,
    runs: Sequence[RunLine] = (),
    state: State | None = None,
) -> str:
    """The page.

    Args:
        pictures: name -> the content of a PNG file, which becomes part of the page.
        runs: all of them, one by one.
        state: of a leaderboard whose runs are going; None: it is done.
    """
    parts = ["<h1>Leaderboard</h1>"]
    if state is not None:
        parts += _state(state)
    if pictures:
        drawn = "\n".join(_picture(name, content) for name, content in pictures.items())
        parts.append(f'<div class="pictures">\n{drawn}\n</div>')
    for table in report.tables:
        parts += [f"<h2>{escape(table.title)}</h2>", _table(table)]
    if runs:
        parts += ["<h2>Runs</h2>", _table_of_runs(runs)]
    parts += ["<h2>Failed and missing runs</h2>", _list(report.troubles or ["none"])]
    parts += ["<h2>How to read this</h2>", _list(report.notes), "<h2>How it was made</h2>"]
    facts = [f"<li>{escape(name)}: <code>{escape(text)}</code></li>" for name, text in report.facts.items()]
    parts.append(f"<ul>{''.join(facts)}</ul>")
    refresh = f'<meta http-equiv="refresh" content="{REFRESH}">\n' if state is not None and state.goes_on else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n{refresh}'
        f"<title>{escape(_title(state))}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + f"\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def _title(state: State | None) -> str:
    if state is None:
        return "Leaderboard"
    return f"{state.snapshot.done} of {state.snapshot.total} runs - Leaderboard"


def _state(state: State) -> list[str]:
    now = state.snapshot
    counts = {"done": now.done, "failed": now.failed, "running": len(now.running), "to do": now.to_do}
    ended = now.done + now.failed
    shown = ", ".join(f'<span class="{escape(name)}">{count} {name}</span>' for name, count in counts.items())
    rate = f", {now.per_hour:.3g} runs an hour" if now.per_hour else ""
    left = f"<p>Left: {escape(str(now.left))}{rate}</p>" if state.goes_on and (now.running or now.to_do) else ""
    parts = [
        f'<div class="overview"><progress max="{max(now.total, 1)}" value="{ended}">{ended} of {now.total}</progress>',
        f"<p>{now.total} runs: {shown}</p>{left}",
        f'<p class="faint">{escape(" ".join(filter(None, (f"As of {state.time}.", state.note))))}</p></div>',
    ]
    if now.running:
        lines = [f"{run}, {duration_text(seconds)}" for run, seconds in now.running]
        parts += ["<h2>Running now</h2>", _list(lines)]
    if state.best:
        lines_of_best = [
            Line([name, one.arm.backbone, one.arm.label, f"{one.auc:.5f}", str(one.runs)])
            for name, arms in state.best.items()
            for one in arms[:MOST_BEST]
        ]
        heads = ["data set", "backbone", "arm", "mean AUC", "runs"]
        parts += ["<h2>Best so far</h2>", _table(Table("best", heads, lines_of_best))]
    return parts


def _table_of_runs(runs: Sequence[RunLine]) -> str:
    lines = []
    for run in runs:
        auc = NOTHING if run.auc is None else f"{run.auc:.5f}"
        cells = [run.dataset, run.backbone, run.arm, run.repeat, run.state, auc, seconds_cell(run.seconds)]
        name = f"of {run.backbone} {run.arm} on {run.dataset}, {run.repeat}"
        links = [
            f'<a href="{escape(quote(path))}" aria-label="{escape(f"{kind} {name}")}">{kind}</a>'
            for kind, path in run.files.items()
        ]
        shown = [escape(cell) for cell in cells]
        shown[4] = f'<span class="{run.state.split()[0]}">{run.state}</span>'
        lines.append(
            "".join(_cell(head, cell) for head, cell in zip(HEADS_OF_RUNS, [*shown, " ".join(links)], strict=True))
        )
    rows = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return _scrolling("runs", HEADS_OF_RUNS, rows, "scroll tall")


def _table(table: Table) -> str:
    lines, group = [], None
    for line in table.lines:
        cells = []
        for head, cell in zip(table.heads, line.cells, strict=True):
            shown = escape(cell)
            if head == "verdict" and line.verdict:
                name, why = line.verdict, cell.removeprefix(line.verdict)
                shown = f'<span class="mark {name.split()[0]}">{MARKS[name]} {escape(name)}</span>{escape(why)}'
            cells.append(_cell(head, shown))
        first = " first" if line.group != group else ""
        group = line.group
        lines.append(f'<tr class="{line.kind}{first}">{"".join(cells)}</tr>')
    return _scrolling(table.title, table.heads, "\n".join(lines))


def _scrolling(name: str, heads: Sequence[str], rows: str, css_class: str = "scroll") -> str:
    """A table in a box of its own, which scrolls where the screen is narrow."""
    head = "".join(
        f'<th scope="col" class="{_class_of(head)}" aria-sort="none"><button type="button">{escape(head)}</button></th>'
        for head in heads
    )
    label = escape(name)
    return (
        f'<div class="{css_class}" tabindex="0" role="region" aria-label="{label}"><table data-name="{label}">'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
    )


def _cell(head: str, shown: str) -> str:
    return f'<td class="{_class_of(head)}">{shown}</td>'


def _class_of(head: str) -> str:
    return f"word {head}" if head in WORDS else "number"


def _list(texts: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def _picture(name: str, content: bytes) -> str:
    data = base64.b64encode(content).decode()
    alt = escape(name.removesuffix(".png").replace("_", " "))
    return f'<figure><img alt="{alt}" src="data:image/png;base64,{data}"></figure>'
