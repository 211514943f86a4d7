"""A report as files: Markdown, LaTeX (the tables alone), csv (the rows), and one HTML page.

The page loads nothing from the network, fits a phone, and is light or dark as the reader's screen is.
"""

import base64
import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from fuxictr_llm.common.files import digest_of_file, explain_write_errors, replacing
from fuxictr_llm.common.formats import LEFT, RIGHT, escaped, list_of, table_of
from fuxictr_llm.common.pictures import png_of
from fuxictr_llm.leaderboard.plan.arms import Repeated
from fuxictr_llm.leaderboard.report import PairedGain
from fuxictr_llm.leaderboard.report.evidence import METRICS, ArmRow, summarize
from fuxictr_llm.leaderboard.report.overall import over_backbones
from fuxictr_llm.leaderboard.report.plots import figures
from fuxictr_llm.leaderboard.report.report import WORD_COLUMNS, Report, Table, make_report
from fuxictr_llm.leaderboard.report.users import OverUsers, over_users
from fuxictr_llm.leaderboard.report.verdicts import VERDICTS
from fuxictr_llm.leaderboard.run.results import OTHER_OUT, Failure, RunResult

# For those who do not see the colours of the verdicts.
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
OF_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "<": "$<$", ">": "$>$", "…": r"\dots{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip


def to_html(report: Report, pictures: Mapping[str, bytes] | None = None) -> str:
    """The page.

    Args:
        pictures: name -> the content of a PNG file, which becomes part of the page.
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
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Leaderboard</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def _table(table: Table) -> str:
    classes = ["word " + head if head in WORD_COLUMNS else "number" for head in table.heads]
    heads = [f'<th class="{name}">{escape(head)}</th>' for name, head in zip(classes, table.heads, strict=True)]
    lines, group = [], None
    for line in table.lines:
        cells = []
        for css_class, head, cell in zip(classes, table.heads, line.cells, strict=True):
            shown = escape(cell)
            if head == "verdict" and line.verdict:
                name, why = line.verdict, cell.removeprefix(line.verdict)
                shown = f'<span class="mark {name.split()[0]}">{MARKS[name]} {escape(name)}</span>{escape(why)}'
            cells.append(f'<td class="{css_class}">{shown}</td>')
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


class Runs(NamedTuple):
    """The runs that a table is of: finished, failed, and all that were planned."""

    finished: Sequence[RunResult]
    failures: Sequence[Failure]
    planned: Sequence[Repeated]


def write_tables_of(
    folder: Path, runs: Runs, facts: Mapping[str, str], write_archive: Callable[[], Path]
) -> list[Path]:
    """`write_all` of the runs in a leaderboard's folder, with the intervals over test users; also the archive's path.

    Args:
        facts: as of `write_all`; the archive's digest is added.
        write_archive: writes the runs to a file and returns it.

    Raises:
        UserError: the folder cannot be written to.
    """
    rows = summarize(*runs)
    users = over_users(folder, runs.finished, over_backbones(rows, runs.finished))
    archive = write_archive()
    facts = {**facts, "runs": f"{archive.name} (sha256 {digest_of_file(archive)})"}
    return [*write_all(folder, rows, runs.finished, runs.failures, facts, users), archive]


def write_all(
    folder: Path,
    rows: Sequence[ArmRow],
    results: Sequence[RunResult],
    failures: Sequence[Failure],
    facts: Mapping[str, str],
    users: Mapping[str, OverUsers] | None = None,
) -> list[Path]:
    """Write `table.md`, `.csv`, `.tex` and `.html`, and the plots; each file whole or not at all. The paths.

    Args:
        rows: from `summarize`.
        results, failures: the runs that the rows are of.
        facts: how they were made, name -> text: the command, the plan's digest, ...
        users: of each data set, intervals that cover the test sample.

    Raises:
        UserError: the folder cannot be written to.
    """
    folder = Path(folder)
    report = make_report(rows, results, failures, facts, users)
    pictures = {f"{name}.png": png_of(figure) for name, figure in figures(rows, results).items()}
    files = {
        **pictures,
        "table.md": to_markdown(report, pictures).encode(),
        "table.csv": to_csv(rows).encode(),
        "table.tex": to_latex(report).encode(),
        "table.html": to_html(report, pictures).encode(),
    }
    with explain_write_errors(folder, OTHER_OUT):
        for name, content in files.items():
            with replacing(folder / name) as temporary:
                temporary.write_bytes(content)
    return [folder / name for name in files]


def to_markdown(report: Report, pictures: Iterable[str] = ()) -> str:
    """A page in GitHub's Markdown.

    Args:
        pictures: names of files beside it that it shows.
    """
    parts = ["# Leaderboard"]
    for table in report.tables:
        places = [LEFT if head in WORD_COLUMNS else RIGHT for head in table.heads]
        parts += [f"## {escaped(table.title)}", table_of(table.heads, [line.cells for line in table.lines], places)]
    parts += ["## Failed and missing runs", list_of(report.troubles or ["none"])]
    if pictures := list(pictures):
        parts += ["## Pictures", *(f"![{escaped(Path(name).stem)}](<{name}>)" for name in pictures)]
    parts += ["## How to read this", list_of(report.notes)]
    parts += ["## How it was made", list_of([f"{name}: {text}" for name, text in report.facts.items()])]
    return "\n\n".join(parts) + "\n"


def to_csv(rows: Iterable[ArmRow]) -> str:
    """A line a row, with unrounded numbers; a control's has the gain of its method over it, too."""
    rows = list(rows)
    methods = {(row.dataset, row.backbone, row.method): row for row in rows if not row.control}
    lines = []
    for row in rows:
        method = methods.get((row.dataset, row.backbone, row.method)) if row.control else None
        line: dict[str, Any] = {
            name: getattr(row, name) for name in ("dataset", "backbone", "arm", "method", "control")
        }
        line |= {name: " ".join(map(str, getattr(row, name))) for name in ("seeds", "failed", "missing")}
        for split, spreads in (("test", row.test), ("valid", row.valid)):
            for metric in METRICS:
                spread = spreads.get(metric)
                line |= {f"{split}_{metric}_{part}": spread and getattr(spread, part) for part in ("mean", "sd")}
        line |= _gain_in_csv("over_plain", row.over_plain)
        over_control = method.over_controls.get(row.control) if method and row.control else None
        line |= _gain_in_csv("method_over_control", over_control)
        line |= {f"{stage}_seconds": row.seconds.get(stage) for stage in ("train", "language_model", "test")}
        line |= {f"parameters_{part}": row.parameters.get(part) for part in ("backbone", "method")}
        line |= {"p_holm": row.p, "inference_ratio": row.inference_ratio, "verdict": row.verdict, "why": row.why}
        lines.append(line)
    text = io.StringIO()
    if lines:
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return text.getvalue()


def to_latex(report: Report) -> str:
    """Tables for `\\input`, which need the package booktabs; how they were made stands in comments."""
    comments = ["Needs \\usepackage{booktabs}; wide tables fit a landscape page (\\usepackage{pdflscape})."]
    comments += [f"{name}: {text}" for name, text in report.facts.items()]
    comments += report.notes + [f"Failed or missing: {text}" for text in report.troubles]
    parts = ["".join(f"% {' '.join(line.split())}\n" for line in comments)]
    return "\n".join([*parts, *(_latex_table(table) for table in report.tables)])


def latex(text: str) -> str:
    """Text that LaTeX sets as it is, on one line."""
    return "".join(OF_LATEX.get(sign, sign) for sign in " ".join(str(text).split()))


def _latex_table(table: Table) -> str:
    columns = "".join("l" if head in WORD_COLUMNS else "r" for head in table.heads)
    lines, group = [], None
    for line in table.lines:
        if group not in (None, line.group):
            lines.append("\\midrule")
        group = line.group
        cells = [
            latex(cell) if head in WORD_COLUMNS else re.sub("[+-](?=[0-9])", r"$\g<0>$", latex(cell))
            for head, cell in zip(table.heads, line.cells, strict=True)
        ]
        lines.append(" & ".join(cells) + r" \\")
    head = " & ".join(latex(head) for head in table.heads) + r" \\"
    body = [
        f"\\begin{{tabular}}{{{columns}}}",
        "\\toprule",
        head,
        "\\midrule",
        *lines,
        "\\bottomrule",
        "\\end{tabular}",
    ]
    around = [
        "\\begin{table}",
        "\\centering\\footnotesize\\setlength{\\tabcolsep}{3pt}",
        f"\\caption{{{latex(table.title)}}}",
    ]
    return "\n".join([*around, *body, "\\end{table}", ""])


def _gain_in_csv(name: str, gain: PairedGain | None) -> dict[str, Any]:
    parts = ("mean", "low", "high", "p", "relative", "rela_impr")
    numbers = {f"{name}_{part}": gain and getattr(gain, part) for part in parts}
    return {**numbers, f"{name}_seeds": gain and " ".join(map(str, gain.seeds))}
