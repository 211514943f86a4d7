"""The cells of a report's tables."""

from collections.abc import Mapping

from fuxictr_llm.leaderboard.plan.plan import PLAIN
from fuxictr_llm.leaderboard.report import PairedGain, Spread
from fuxictr_llm.leaderboard.report.evidence import ArmRow
from fuxictr_llm.leaderboard.report.power import Pilot
from fuxictr_llm.leaderboard.report.users import Interval
from fuxictr_llm.leaderboard.report.verdicts import FEWEST_SEEDS

NOTHING = "-"


def kind_of(row: ArmRow) -> str:
    """plain, method or control."""
    return "control" if row.control else "method" if row.method else "plain"


def seeds_cell(row: ArmRow) -> str:
    planned = len(row.seeds) + len(row.failed) + len(row.missing)
    if planned == len(row.seeds):
        return str(planned)
    not_done = [f"{len(seeds)} {what}" for what, seeds in (("failed", row.failed), ("not run", row.missing)) if seeds]
    return f"{len(row.seeds)} of {planned} ({', '.join(not_done)})"


def spread_cell(spread: Spread | None) -> str:
    if spread is None:
        return NOTHING
    return f"{spread.mean:.5f}" + ("" if spread.sd is None else f" ± {spread.sd:.5f}")


def gain_cell(gain: PairedGain | None) -> str:
    if gain is None:
        return NOTHING
    return f"{gain.mean:+.5f}" + (" [{:+.5f}, {:+.5f}]".format(*gain.interval) if gain.interval else "")


def users_cell(intervals: Mapping[tuple[str, str], Interval], arm: str, method: str | None, control: str | None) -> str:
    """The interval over test users: of a method over plain, or of the method over its control."""
    interval = intervals.get((str(method), arm) if control else (arm, PLAIN))
    return NOTHING if interval is None else "[{:+.5f}, {:+.5f}]".format(*interval)


def smallest_cell(pilot: Pilot | None) -> str:
    """The smallest gain that could have been shown."""
    return NOTHING if pilot is None or pilot.n < FEWEST_SEEDS else f"{pilot.smallest_gain():+.5f}"


def p_cell(p: float | None) -> str:
    return NOTHING if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def share_cell(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:+.2f} %"


def seconds_cell(seconds: float | None) -> str:
    return NOTHING if seconds is None else f"{seconds:,.0f}" if seconds >= 9.95 or seconds == 0 else f"{seconds:.1f}"


def parameters_cell(parameters: Mapping[str, int]) -> str:
    if not parameters:
        return NOTHING
    method = parameters.get("method", 0)
    return f"{parameters.get('backbone', 0):,}" + (f" + {method:,}" if method else "")


def count_cell(count: float | None) -> str:
    return NOTHING if count is None else f"{count:,.0f}"
