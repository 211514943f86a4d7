"""`paper.tex`: a table for each data set as papers have it, methods down and backbones across."""

import re
from collections.abc import Callable, Sequence
from statistics import stdev
from typing import NamedTuple

from fuxictr_llm.common.errors import unknown
from fuxictr_llm.leaderboard.plan.plan import PLAIN
from fuxictr_llm.leaderboard.report import Spread
from fuxictr_llm.leaderboard.report.evidence import METRICS, ArmRow
from fuxictr_llm.leaderboard.report.latex import latex
from fuxictr_llm.leaderboard.report.verdicts import PLACEBO, PROVEN, VERDICTS, WORSE


class Column(NamedTuple):
    """What can stand under each backbone.

    Attributes:
        value: of a row; None: it has none.
        form: of a mean and of a deviation.
        more_is_better: whether the largest mean is the best; None: none of them is.
    """

    value: Callable[[ArmRow], Spread | None]
    form: str = ".4f"
    more_is_better: bool | None = True


def _of_metric(split: str, metric: str, more_is_better: bool) -> Column:
    return Column(lambda row: getattr(row, split).get(metric), more_is_better=more_is_better)


def _gain(row: ArmRow) -> Spread | None:
    gain = row.over_plain
    if gain is None:
        return None
    values = list(gain.differences.values())
    return Spread(gain.mean, stdev(values) if len(values) > 1 else None, len(values))


def _rela_impr(row: ArmRow) -> Spread | None:
    share = row.over_plain.rela_impr if row.over_plain else None
    return None if share is None else Spread(100 * share, None, len(row.seeds))


def _seconds(row: ArmRow, stage: str) -> Spread | None:
    return Spread(row.seconds[stage], None, len(row.seeds)) if stage in row.seconds else None


def _parameters(row: ArmRow) -> Spread | None:
    return Spread(sum(row.parameters.values()), None, len(row.seeds)) if row.parameters else None


LESS = {"logloss"}  # of these metrics, less is better
COLUMNS: dict[str, Column] = {
    **{metric: _of_metric("test", metric, metric not in LESS) for metric in METRICS},
    **{f"valid_{metric}": _of_metric("valid", metric, metric not in LESS) for metric in METRICS},
    "gain": Column(_gain, "+.4f"),
    "RelaImpr": Column(_rela_impr, "+.2f"),
    "train_seconds": Column(lambda row: _seconds(row, "train"), ",.0f", None),
    "language_model_seconds": Column(lambda row: _seconds(row, "language_model"), ",.0f", None),
    "parameters": Column(_parameters, ",.0f", None),
}
HEADS = {"RelaImpr": "RelaImpr (%)", "train_seconds": "training (s)", "language_model_seconds": "LM (s)"}
DEFAULT = ("AUC", "logloss")
SIGNS = {PROVEN: r"\ast", PLACEBO: r"\circ", WORSE: r"\downarrow"}
MEANINGS = {
    PROVEN: "better than plain and than every placebo",
    PLACEBO: "no better than a placebo",
    WORSE: "worse than plain",
}


def check_columns(names: Sequence[str]) -> None:
    """Check the names of a table's columns.

    Raises:
        UserError: one is unknown.
    """
    for name in names:
        if name not in COLUMNS:
            raise unknown("column", name, COLUMNS, where="--paper-columns")


def to_paper(rows: Sequence[ArmRow], columns: Sequence[str] = DEFAULT) -> str:
    """Mean and standard deviation of plain and of each method on each backbone, the best in bold, with its verdict.

    Args:
        rows: from `summarize`; controls are left out: the wide table has them.
        columns: of COLUMNS; those in which no row has anything are left out.
    """
    head = "% Needs \\usepackage{booktabs}. Controls, intervals and p values stand in table.tex and table.html.\n"
    shown = [row for row in rows if not row.control]
    return "\n".join(
        [head, *(_table([row for row in shown if row.dataset == name], columns) for name in _each(shown, "dataset"))]
    )


def _table(rows: Sequence[ArmRow], columns: Sequence[str]) -> str:
    dataset, backbones, arms = rows[0].dataset, _each(rows, "backbone"), _each(rows, "arm")
    columns = [name for name in dict.fromkeys(columns) if any(COLUMNS[name].value(row) for row in rows)]
    of_verdict = next((name for name in ("AUC", "gain", *columns) if name in columns), "")  # which carries the sign
    row_of = {(row.arm, row.backbone): row for row in rows}
    best = {(backbone, name): _best(rows, backbone, name) for backbone in backbones for name in columns}
    lines = []
    for arm in arms:
        cells = [
            _cell(row_of.get((arm, backbone)), name, best[backbone, name], name == of_verdict)
            for backbone in backbones
            for name in columns
        ]
        lines.append(" & ".join([latex(arm), *cells]) + r" \\")
        if arm == PLAIN:
            lines.append(r"\midrule")
    groups = [rf"\multicolumn{{{len(columns)}}}{{c}}{{{latex(backbone)}}}" for backbone in backbones]
    heads = [latex(HEADS.get(name, name.replace("_", " "))) for _ in backbones for name in columns]
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


def _best(rows: Sequence[ArmRow], backbone: str, name: str) -> str | None:
    """The best mean of a backbone, as it is shown."""
    column = COLUMNS[name]
    spreads = [column.value(row) for row in rows if row.backbone == backbone]
    means = [spread.mean for spread in spreads if spread]
    if not means or column.more_is_better is None:
        return None
    return format((max if column.more_is_better else min)(means), column.form)


def _cell(row: ArmRow | None, name: str, best: str | None, with_sign: bool) -> str:
    spread, form = (COLUMNS[name].value(row) if row else None), COLUMNS[name].form
    if row is None or spread is None:
        return "--"
    sign = SIGNS.get(row.verdict) if with_sign else None
    mean = format(spread.mean, form)
    shown = mean.replace(",", "{,}")  # TeX sets a comma as a sign of its own
    shown = rf"\mathbf{{{shown}}}" if mean == best else shown
    deviation = "" if spread.sd is None else rf"{{\scriptstyle\pm{format(spread.sd, form.lstrip('+'))}}}"
    return f"${shown}{deviation}{f'^{{{sign}}}' if sign else ''}$"


def _caption(dataset: str, rows: Sequence[ArmRow]) -> str:
    seeds = sorted({len(row.seeds) for row in rows})
    count = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    found = [verdict for verdict in VERDICTS if verdict in SIGNS and any(verdict == row.verdict for row in rows)]
    signs = "".join(f"; ${SIGNS[verdict]}$: {MEANINGS[verdict]}" for verdict in found)
    return f"{latex(dataset)}, test split: mean and standard deviation of {count} runs, the best mean in bold{signs}."
