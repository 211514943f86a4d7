"""The page of a leaderboard whose runs are going, written again and again beside its place and renamed."""

import contextlib
import logging
import time
from collections.abc import Iterator
from datetime import datetime

from fuxictr_llm.common.errors import reason_of
from fuxictr_llm.common.files import replacing
from fuxictr_llm.common.pictures import png_of
from fuxictr_llm.leaderboard.plan.plan import PlannedRun
from fuxictr_llm.leaderboard.report.evidence import summarize
from fuxictr_llm.leaderboard.report.figures import figures
from fuxictr_llm.leaderboard.report.page import State, to_html
from fuxictr_llm.leaderboard.report.report import make_report
from fuxictr_llm.leaderboard.report.run_list import Runs, list_runs
from fuxictr_llm.leaderboard.run.engine import Listener
from fuxictr_llm.leaderboard.run.progress import Display, every, standings

PAGE = "table.html"
SECONDS = 5.0  # at least, between two pages
STALE = 60.0  # seconds after which a page is written though nothing has happened
# Tables and pictures are made again after so many times the seconds that it took: the cores are the runs'.
REST = 50


class LivePage(Listener):
    """Tells a display what it hears, and writes the page.

    Args:
        display: knows how far the runs are.
    """

    def __init__(self, display: Display):
        self.display, self.folder = display, display.results.folder
        self._changed, self._written = True, 0.0
        self._made_of, self._next_report, self._works = -1, 0.0, True

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """For the block, the display is on the screen and the page in the folder; then the page says how it ended."""
        try:
            with self.display.shown(), every(SECONDS, self._write_if_due):
                yield
        except BaseException:
            self._write("The command was ended before its time; the same command goes on.", goes_on=False)
            raise
        self._write("All has run; the tables are being made.")

    def preparing(self, data_set: str) -> None:
        self.display.preparing(data_set)

    def started(self, run: PlannedRun) -> None:
        self.display.started(run)
        self._changed = True

    def finished(self, run: PlannedRun) -> None:
        self.display.finished(run)
        self._changed = True

    def failed(self, run: PlannedRun, reason: str) -> None:
        self.display.failed(run, reason)
        self._changed = True

    def _write_if_due(self) -> None:
        if self._changed or time.monotonic() - self._written > STALE:
            self._write()

    def _write(self, note: str = "", goes_on: bool = True) -> None:
        """Write the page; where that fails, the runs go on, and a warning says so once."""
        self._changed = False
        try:
            page = self._page(note, goes_on)
            with replacing(self.folder / PAGE) as temporary:
                temporary.write_text(page, encoding="utf-8")
        except Exception as error:  # it is written from a thread, and the runs matter more
            if self._works:
                logging.warning("no page of the runs under way: %s: %s", type(error).__name__, reason_of(error))
            self._works = False
        self._written = time.monotonic()

    def _page(self, note: str, goes_on: bool) -> str:
        display, started = self.display, time.monotonic()
        finished, now = display.finished_runs, display.snapshot()
        runs = Runs(finished, display.results.failures(), list(display.runs.values()))
        ended = len(finished) + len(runs.failures)
        if ended != self._made_of and started >= self._next_report:
            rows = summarize(finished, runs.failures)
            self._pictures = {f"{name}.png": png_of(figure) for name, figure in figures(rows, finished).items()}
            self._tables = make_report(rows, finished, runs.failures)
            self._made_of, self._next_report = ended, started + REST * (time.monotonic() - started)
        running = {run.key: seconds for run, seconds in now.running}
        listed = list_runs(self.folder, runs, running)
        state = State(now, standings(finished), f"{datetime.now():%Y-%m-%d %H:%M:%S}", note, goes_on)
        return to_html(self._tables, self._pictures, listed, state)
