"""A leaderboard as one HTML page: it asks nothing of the network, fits a phone, and is light or dark."""

import base64
from collections.abc import Iterable, Mapping
from html import escape

from fuxictr_llm.leaderboard.evidence import VERDICTS
from fuxictr_llm.leaderboard.report import TEXTS, Report, Table

# Marks say what colours say, for those who do not see them.
MARKS = dict(zip(VERDICTS, ("✔", "≈", "✘", "?"), strict=True))
STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #fff; --faint: #666; --line: #ddd; --band: #f5f5f5;
  --proven: #00694f; --placebo: #8a5a00; --worse: #a83a00; --unproven: #555; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #161616; --faint: #a5a5a5; --line: #3a3a3a;
  --band: #222; --proven: #4fd3ad; --placebo: #f0b84d; --worse: #ff9166; --unproven: #b5b5b5; } }
body { margin: 0 auto; padding: 1rem; max-width: 90rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1, h2 { line-height: 1.2; } h2 { margin-top: 2.5rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .35rem .6rem; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid var(--line); vertical-align: bottom; }
thead th.number { white-space: normal; min-width: 4.5rem; overflow-wrap: normal; }
.word { text-align: left; } td.verdict { white-space: normal; min-width: 15rem; }
td:first-child, th:first-child { position: sticky; left: 0; background: var(--paper); font-weight: 600; }
tr.first td { border-top: 1px solid var(--line); } tr.plain td, tr.plain td:first-child { background: var(--band); }
tr.control td { color: var(--faint); } tr.control td.arm { padding-left: 1.6rem; }
.mark { font-weight: 600; } .proven { color: var(--proven); } .placebo { color: var(--placebo); }
.worse { color: var(--worse); } .unproven { color: var(--unproven); }
.pictures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
figure { margin: 0; flex: 1 1 30rem; max-width: 46rem; }
img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--line); border-radius: 6px; }
@media (max-width: 40rem) { body { padding: .6rem; } table { font-size: .8rem; } th, td { padding: .3rem .4rem; }
  td.verdict { min-width: 11rem; } tr.control td.arm { padding-left: .9rem; } }
ul { padding-left: 1.2rem; } li { margin: .3rem 0; } code { font-size: .85rem; }
"""


def to_html(report: Report, pictures: Mapping[str, bytes] | None = None) -> str:
    """The page.

    Args:
        pictures: name -> the content of a PNG file; they become part of the page.
    """
    parts = ["<h1>Leaderboard</h1>"]
    if pictures:
        drawn = "\n".join(_picture(name, content) for name, content in pictures.items())
        parts.append(f'<div class="pictures">\n{drawn}\n</div>')
    for table in report.tables:
        parts += [f"<h2>{escape(table.title)}</h2>", _table(table)]
    parts += ["<h2>Failed and missing runs</h2>", _list(report.troubles or ["none"])]
    parts += ["<h2>How to read this</h2>", _list(report.notes), "<h2>How it was made</h2>"]
    facts = [f"<li>{escape(name)}: <code>{escape(text)}</code></li>" for name, text in report.facts.items()]
    parts.append(f"<ul>{''.join(facts)}</ul>")
    if report.digests:
        parts.append(f"<details><summary>Digests of the runs</summary>{_list(report.digests)}</details>")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Leaderboard</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _table(table: Table) -> str:
    classes = ["word " + head if head in TEXTS else "number" for head in table.heads]
    heads = [f'<th class="{of}">{escape(head)}</th>' for of, head in zip(classes, table.heads, strict=True)]
    lines, group = [], None
    for line in table.lines:
        cells = []
        for of, head, cell in zip(classes, table.heads, line.cells, strict=True):
            shown = escape(cell)
            if head == "verdict" and line.verdict:
                name, why = line.verdict, cell.removeprefix(line.verdict)
                shown = f'<span class="mark {name.split()[0]}">{MARKS[name]} {escape(name)}</span>{escape(why)}'
            cells.append(f'<td class="{of}">{shown}</td>')
        first = " first" if line.group != group else ""
        group = line.group
        lines.append(f'<tr class="{line.kind}{first}">{"".join(cells)}</tr>')
    head, body = "".join(heads), "\n".join(lines)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'


def _list(texts: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def _picture(name: str, content: bytes) -> str:
    data = base64.b64encode(content).decode()
    alt = escape(name.removesuffix(".png").replace("_", " "))
    return f'<figure><img alt="{alt}" src="data:image/png;base64,{data}"></figure>'
