"""A report as files: Markdown, LaTeX (the tables alone, also as papers have them), csv (the rows), and HTML."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fuxictr_llm.common.files import digest_of_file, explain_write_errors, replacing
from fuxictr_llm.common.formats import LEFT, RIGHT, escaped, list_of, table_of
from fuxictr_llm.common.pictures import png_of
from fuxictr_llm.leaderboard.plan.arms import Repeated
from fuxictr_llm.leaderboard.report import PairedGain
from fuxictr_llm.leaderboard.report.evidence import METRICS, ArmRow, summarize
from fuxictr_llm.leaderboard.report.figures import figures
from fuxictr_llm.leaderboard.report.latex import latex
from fuxictr_llm.leaderboard.report.overall import over_backbones
from fuxictr_llm.leaderboard.report.page import to_html
from fuxictr_llm.leaderboard.report.paper import DEFAULT, to_paper
from fuxictr_llm.leaderboard.report.report import WORD_COLUMNS, Report, Table, make_report
from fuxictr_llm.leaderboard.report.run_list import Runs, list_runs
from fuxictr_llm.leaderboard.report.users import OverUsers, over_users
from fuxictr_llm.leaderboard.run.results import OTHER_OUT, Failure, RunResult


def write_tables_of(
    folder: Path,
    runs: Runs,
    facts: Mapping[str, str],
    write_archive: Callable[[], Path],
    columns: Sequence[str] | None = None,
) -> list[Path]:
    """`write_all` of the runs in a leaderboard's folder, with the intervals over test users; also the archive's path.

    Args:
        facts: as of `write_all`; the archive's digest is added.
        write_archive: writes the runs to a file and returns it.
        columns: of `paper.tex`; None: its default.

    Raises:
        UserError: the folder cannot be written to.
    """
    rows = summarize(*runs)
    users = over_users(folder, runs.finished, over_backbones(rows, runs.finished))
    archive = write_archive()
    facts = {**facts, "runs": f"{archive.name} (sha256 {digest_of_file(archive)})"}
    return [*write_all(folder, rows, runs.finished, runs.failures, facts, users, runs.planned, columns), archive]


def write_all(
    folder: Path,
    rows: Sequence[ArmRow],
    results: Sequence[RunResult],
    failures: Sequence[Failure],
    facts: Mapping[str, str],
    users: Mapping[str, OverUsers] | None = None,
    planned: Sequence[Repeated] = (),
    columns: Sequence[str] | None = None,
) -> list[Path]:
    """Write `table.md`, `.csv`, `.tex`, `.html`, `paper.tex` and the plots, each whole or not at all; their paths.

    Args:
        rows: from `summarize`.
        results, failures: the runs that the rows are of.
        facts: how they were made, name -> text: the command, the plan's digest, ...
        users: of each data set, intervals that cover the test sample.
        planned: all runs of the plan, which the page lists; none: those that are finished or failed.
        columns: of `paper.tex`; None: its default.

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
        "paper.tex": to_paper(rows, columns or DEFAULT).encode(),
        "table.html": to_html(report, pictures, list_runs(folder, Runs(results, failures, planned))).encode(),
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
        line |= {f"tokens_{kind}": row.tokens.get(kind) for kind in ("read", "written")}
        line |= {f"parameters_{part}": row.parameters.get(part) for part in ("backbone", "method")}
        line |= {
            f"served_{fact}": row.served.get(fact) for fact in ("parameters", "milliseconds", "batch_rows", "threads")
        }
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
