"""What a gain costs: quality, gains over plain and placebo, the language model's work, training, and what is served."""

from collections.abc import Callable, Iterable, Sequence

from fuxictr_llm.leaderboard.report.cells import NOTHING, count_cell, gain_cell, seconds_cell, spread_cell
from fuxictr_llm.leaderboard.report.evidence import ArmRow

NEEDED = ("backbone", "arm", "AUC")


def cells_of_costs(rows: Sequence[ArmRow]) -> tuple[list[str], dict[tuple[str, str], list[str]]]:
    """The heads of a table of plain and methods, and the cells of each, by backbone and arm.

    Columns in which all cells of methods would be empty are left out.

    Args:
        rows: of one data set.
    """
    columns: dict[str, Callable[[ArmRow], str]] = {
        "backbone": lambda row: row.backbone,
        "arm": lambda row: row.arm,
        "AUC": lambda row: spread_cell(row.test.get("AUC")),
        "logloss": lambda row: spread_cell(row.test.get("logloss")),
        "gain over plain [95 %]": lambda row: gain_cell(row.over_plain),
        "gain over placebo [95 %]": lambda row: gain_cell(row.over_controls.get(hardest_control(row) or "")),
        "placebo": lambda row: hardest_control(row) or NOTHING,
        "language model s": lambda row: seconds_cell(row.seconds.get("language_model")),
        "tokens read": lambda row: count_cell(row.tokens.get("read")),
        "tokens written": lambda row: count_cell(row.tokens.get("written")),
        "training s": lambda row: seconds_cell(row.seconds.get("train")),
        "parameters served": lambda row: count_cell(row.served.get("parameters")),
        "latency ms": lambda row: _milliseconds_cell(row.served.get("milliseconds")),
    }
    rows = [row for row in rows if not row.control]
    methods = [row for row in rows if row.is_method]
    shown = {
        head: cell for head, cell in columns.items() if head in NEEDED or any(cell(row) != NOTHING for row in methods)
    }
    return list(shown), {(row.backbone, row.arm): [cell(row) for cell in shown.values()] for row in rows}


def hardest_control(row: ArmRow) -> str | None:
    """Of a method's controls that ran, the one over which it gains least."""
    gains = {name: gain.mean for name, gain in row.over_controls.items() if gain}
    return min(gains, key=lambda name: gains[name]) if gains else None


def how_served(rows: Iterable[ArmRow]) -> str:
    """How the latencies were measured; empty where none was."""
    ways = {(row.served["batch_rows"], row.served["threads"]) for row in rows if row.served}
    if not ways:
        return ""
    shown = " or ".join(f"{batch:,.0f} rows on {_threads(threads)}" for batch, threads in sorted(ways))
    return f"a batch of {shown} of the CPU"


def _threads(count: float) -> str:
    return f"{count:.0f} thread{'s' if count > 1 else ''}"


def _milliseconds_cell(milliseconds: float | None) -> str:
    return NOTHING if milliseconds is None else f"{milliseconds:.2f}"
