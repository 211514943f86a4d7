"""Tables of a leaderboard as Markdown, CSV and LaTeX, and all files of it."""

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fuxictr_llm.files import explain_write_errors, replacing
from fuxictr_llm.leaderboard.evidence import METRICS, Row
from fuxictr_llm.leaderboard.gains import Gain
from fuxictr_llm.leaderboard.page import to_html
from fuxictr_llm.leaderboard.plots import figures, png_of
from fuxictr_llm.leaderboard.report import TEXTS, Report, Table, make_report
from fuxictr_llm.leaderboard.results import Failure, RunResult

OF_MARKDOWN = re.compile(r"[\\`*_|~$]|(?<=\])\(")
OF_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
    "<": "$<$", ">": "$>$", "…": r"\dots{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip


def write_all(
    folder: Path,
    rows: Sequence[Row],
    results: Sequence[RunResult],
    failures: Sequence[Failure],
    facts: Mapping[str, str],
) -> list[Path]:
    """Write `table.md`, `.csv`, `.tex` and `.html`, and the plots; each file whole or not at all. The paths.

    Args:
        rows: from `summarize`.
        results, failures: that went in there.
        facts: what made them, name -> text: the command, the plan's digest, ...

    Raises:
        UserError: the folder cannot be written to.
    """
    folder = Path(folder)
    report = make_report(rows, results, failures, facts)
    pictures = {f"{name}.png": png_of(figure) for name, figure in figures(rows, results).items()}
    files = {
        **pictures,
        "table.md": to_markdown(report, pictures).encode(),
        "table.csv": to_csv(rows).encode(),
        "table.tex": to_latex(report).encode(),
        "table.html": to_html(report, pictures).encode(),
    }
    with explain_write_errors(folder, "choose another folder with --out"):
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
        parts += [f"## {markdown(table.title)}", _markdown_table(table)]
    parts += ["## Failed and missing runs", _markdown_list(report.troubles or ["none"])]
    if pictures := list(pictures):
        parts += ["## Pictures", *(f"![{markdown(Path(name).stem)}](<{name}>)" for name in pictures)]
    parts += ["## How to read this", _markdown_list(report.notes)]
    parts += ["## How it was made", _markdown_list([f"{name}: {text}" for name, text in report.facts.items()])]
    if report.digests:
        parts += ["<details><summary>Digests of the runs</summary>", _markdown_list(report.digests), "</details>"]
    return "\n\n".join(parts) + "\n"


def to_csv(rows: Iterable[Row]) -> str:
    """A line a row, numbers as they are; empty where there is none. Control rows tell of the method over them, too."""
    rows = list(rows)
    methods = {(row.dataset, row.backbone, row.method): row for row in rows if row.method and not row.control}
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
        line |= _gain_in_csv("method_over_control", method and method.over_controls.get(row.control))
        line |= {f"{stage}_seconds": row.seconds.get(stage) for stage in ("train", "language_model", "test")}
        line |= {f"parameters_{of}": row.parameters.get(of) for of in ("backbone", "method")}
        lines.append({**line, "inference_ratio": row.inference_ratio, "verdict": row.verdict, "why": row.why})
    text = io.StringIO()
    if lines:
        writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    return text.getvalue()


def to_latex(report: Report) -> str:
    """Tables that need the package booktabs, to be taken in with `\\input`; what made them stands in comments."""
    comments = ["Needs \\usepackage{booktabs}; wide tables fit a landscape page (\\usepackage{pdflscape})."]
    comments += [f"{name}: {text}" for name, text in report.facts.items()]
    comments += report.notes + [f"Failed or missing: {text}" for text in report.troubles]
    parts = ["".join(f"% {' '.join(line.split())}\n" for line in comments)]
    return "\n".join([*parts, *(_latex_table(table) for table in report.tables)])


def markdown(text: str) -> str:
    """Text that Markdown shows as it is, on one line, within a table or without."""
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return OF_MARKDOWN.sub(lambda found: f"\\{found[0]}", text)


def latex(text: str) -> str:
    """Text that LaTeX sets as it is, on one line."""
    return "".join(OF_LATEX.get(sign, sign) for sign in " ".join(str(text).split()))


def _markdown_table(table: Table) -> str:
    ruler = [":--" if head in TEXTS else "--:" for head in table.heads]
    lines = [[markdown(head) for head in table.heads], ruler, *(map(markdown, line.cells) for line in table.lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _markdown_list(texts: Iterable[str]) -> str:
    return "\n".join(f"- {markdown(text)}" for text in texts)


def _latex_table(table: Table) -> str:
    columns = "".join("l" if head in TEXTS else "r" for head in table.heads)
    lines, group = [], None
    for line in table.lines:
        if group not in (None, line.group):
            lines.append("\\midrule")
        group = line.group
        cells = [
            latex(cell) if head in TEXTS else re.sub("[+-](?=[0-9])", r"$\g<0>$", latex(cell))
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


def _gain_in_csv(name: str, gain: Gain | None) -> dict[str, Any]:
    parts = ("mean", "low", "high", "p", "corrected", "relative", "rela_impr")
    numbers = {f"{name}_{part}": gain and getattr(gain, part) for part in parts}
    return {**numbers, f"{name}_seeds": gain and " ".join(map(str, gain.seeds))}
