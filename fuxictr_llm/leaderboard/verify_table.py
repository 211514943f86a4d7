"""The comparison with published figures, on the screen and as Markdown."""

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from fuxictr_llm.files import explain_write_errors, replacing
from fuxictr_llm.leaderboard.results import OTHER_OUT
from fuxictr_llm.leaderboard.verify import NOT_RUN, TOLERANCE, Verified

HEADER = ("model", "printed AUC", "published mean", "runs", "our AUC", "sd", "seeds", "difference", "verdict", "flags")
COLORS = {"reproduced": "green", "better": "cyan", "worse": "red", NOT_RUN: "dim"}
EXPLAINED = (
    "difference: the mean of our test AUCs minus the mean of the published runs (of a single one, the printed value). "
    f"reproduced: by less than {TOLERANCE}, the tolerance of the maintainers of BARS."
)


def cells_of(row: Verified) -> list[str]:
    """The texts of a row's cells, in the order of `HEADER`."""
    published = row.row
    flags = "; ".join(filter(None, [row.reason, *row.flags]))
    spread = "" if published.auc_sd is None else f" ± {published.auc_sd:.6f}"
    return [
        published.model,
        f"{published.auc:g}",
        "" if published.auc_mean is None else f"{published.auc_mean:.6f}{spread}",
        str(published.runs),
        "" if row.mean is None else f"{row.mean:.6f}",
        "" if row.sd is None else f"{row.sd:.6f}",
        ", ".join(map(str, row.auc)),
        "" if row.difference is None else f"{row.difference:+.6f}",
        row.verdict,
        flags,
    ]


def to_screen(board: str, rows: Sequence[Verified]) -> Group:
    """A table that fits 80 columns, and below it each remark with the rows that it is about."""
    table = Table(title=f"{board}: published and ours, test AUC", box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("model", "published", "ours", "difference", "verdict"):
        table.add_column(name, justify="left" if name in ("model", "verdict") else "right")
    about: dict[str, list[str]] = {}
    for row in rows:
        ours = "" if row.mean is None else f"{row.mean:.5f}" + ("" if row.sd is None else f" ± {row.sd:.5f}")
        published = f"{row.row.expected_auc:.5f}" + ("" if row.row.auc_sd is None else f" ± {row.row.auc_sd:.5f}")
        difference = "" if row.difference is None else f"{row.difference:+.5f}"
        cells = (row.row.model, published, ours, difference, row.verdict)
        table.add_row(*map(escape, cells), style=COLORS[row.verdict])
        for remark in filter(None, [row.reason, *row.flags]):
            about.setdefault(remark, []).append(row.row.model)
    remarks = [
        f"{remark}: {'all' if len(models) == len(rows) else ', '.join(models)}" for remark, models in about.items()
    ]
    return Group(table, "", *map(escape, remarks), escape(EXPLAINED))


def to_markdown(board: str, rows: Sequence[Verified], facts: Sequence[str] = ()) -> str:
    """A page with the table and, above it, `facts`: what was run, and on which data."""
    lines = [f"# {board}: ours and published", "", *(f"- {fact}" for fact in facts), f"- {EXPLAINED}", ""]
    lines += [_line(HEADER), _line(["---"] * len(HEADER)), *(_line(cells_of(row)) for row in rows)]
    return "\n".join(lines) + "\n"


def write_markdown(path: Path, text: str) -> None:
    """Write a page whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    with explain_write_errors(path, OTHER_OUT), replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"
