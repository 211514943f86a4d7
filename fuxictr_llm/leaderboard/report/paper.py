"""`paper.tex`: a table for each data set as papers have it, methods down and backbones across."""

import re
from collections.abc import Sequence

from fuxictr_llm.leaderboard.plan.plan import PLAIN
from fuxictr_llm.leaderboard.report import Spread
from fuxictr_llm.leaderboard.report.evidence import ArmRow
from fuxictr_llm.leaderboard.report.latex import latex
from fuxictr_llm.leaderboard.report.verdicts import PLACEBO, PROVEN, VERDICTS, WORSE

# What can stand under each backbone -> digits, and whether more is better.
COLUMNS: dict[str, tuple[int, bool]] = {"AUC": (4, True), "gAUC": (4, True), "logloss": (4, False)}
DEFAULT = ("AUC", "logloss")
SIGNS = {PROVEN: r"\ast", PLACEBO: r"\circ", WORSE: r"\downarrow"}
MEANINGS = {
    PROVEN: "better than plain and than every placebo",
    PLACEBO: "no better than a placebo",
    WORSE: "worse than plain",
}


def to_paper(rows: Sequence[ArmRow], columns: Sequence[str] = DEFAULT) -> str:
    """Mean and standard deviation of plain and of each method on each backbone, the best in bold, with its verdict.

    Args:
        rows: from `summarize`; controls are left out: the wide table has them.
        columns: of COLUMNS; those that no run measured are left out.
    """
    head = "% Needs \\usepackage{booktabs}. Controls, intervals and p values stand in table.tex and table.html.\n"
    shown = [row for row in rows if not row.control]
    return "\n".join(
        [head, *(_table([row for row in shown if row.dataset == name], columns) for name in _each(shown, "dataset"))]
    )


def _table(rows: Sequence[ArmRow], columns: Sequence[str]) -> str:
    dataset, backbones, arms = rows[0].dataset, _each(rows, "backbone"), _each(rows, "arm")
    columns = [name for name in columns if any(name in row.test for row in rows)]
    row_of = {(row.arm, row.backbone): row for row in rows}
    best = {(backbone, name): _best(rows, backbone, name) for backbone in backbones for name in columns}
    lines = []
    for arm in arms:
        cells = [
            _cell(row_of.get((arm, backbone)), name, best[backbone, name]) for backbone in backbones for name in columns
        ]
        lines.append(" & ".join([latex(arm), *cells]) + r" \\")
        if arm == PLAIN:
            lines.append(r"\midrule")
    groups = [rf"\multicolumn{{{len(columns)}}}{{c}}{{{latex(backbone)}}}" for backbone in backbones]
    heads = [latex(name) for _ in backbones for name in columns]
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
            rf"\caption{{{_caption(dataset, rows)}}}",
            rf"\label{{tab:{re.sub('[^A-Za-z0-9_-]', '-', dataset)}}}",
            rf"\begin{{tabular}}{{l{'r' * len(heads)}}}",
            r"\toprule",
            " & ".join(["", *groups]) + r" \\",
            " & ".join(["", *heads]) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _each(rows: Sequence[ArmRow], name: str) -> list[str]:
    return list(dict.fromkeys(getattr(row, name) for row in rows))


def _best(rows: Sequence[ArmRow], backbone: str, name: str) -> float | None:
    means = [row.test[name].mean for row in rows if row.backbone == backbone and name in row.test]
    return (max if COLUMNS[name][1] else min)(means) if means else None


def _cell(row: ArmRow | None, name: str, best: float | None) -> str:
    spread: Spread | None = row.test.get(name) if row else None
    if row is None or spread is None:
        return "--"
    digits, sign = COLUMNS[name][0], SIGNS.get(row.verdict) if name == "AUC" else None
    mean = f"{spread.mean:.{digits}f}"
    mean = rf"\mathbf{{{mean}}}" if best is not None and mean == f"{best:.{digits}f}" else mean
    deviation = "" if spread.sd is None else rf"{{\scriptstyle\pm{spread.sd:.{digits}f}}}"
    return f"${mean}{deviation}{f'^{{{sign}}}' if sign else ''}$"


def _caption(dataset: str, rows: Sequence[ArmRow]) -> str:
    seeds = sorted({len(row.seeds) for row in rows})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    found = [verdict for verdict in VERDICTS if verdict in SIGNS and any(verdict == row.verdict for row in rows)]
    signs = "".join(f"; ${SIGNS[verdict]}$: {MEANINGS[verdict]}" for verdict in found)
    return f"{latex(dataset)}, test split: mean and standard deviation of {count} runs, the best mean in bold{signs}."
