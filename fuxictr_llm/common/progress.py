"""Progress of a stage that lasts: how much is done, at which rate, and the time left.

On a terminal it is tqdm's bar. Elsewhere (a file, a batch system's log) it is plain lines, fewer the longer it lasts.
Both go to standard error, and neither before the stage has lasted `DELAY` seconds: a short one shows nothing.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType
from typing import Any, TextIO

from tqdm import tqdm

AFFECTS_RESULTS = False  # see common/code_digest.py
AFFECTS_VECTORS = False

DELAY = 5.0  # seconds
# Between two lines: from the first number on ever longer, to the second or a tenth of the whole time if that is longer.
INTERVALS = 5.0, 30.0
BYTES = "B"  # the unit that is shown as k, M and G

_quiet: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def quiet_if(quiet: bool) -> Iterator[None]:
    """In the block, no progress is shown if `quiet`: `verbose: 0`."""
    token = _quiet.set(quiet or _quiet.get())
    try:
        yield
    finally:
        _quiet.reset(token)


class Progress:
    """The progress of one stage; several threads may count.

    Args:
        name: of the stage, as it is shown.
        total: how many units there are to do.
        unit: what is counted, in the plural, or `BYTES`.
        done: how many were done earlier; they do not count for the rate.
        shown: whether anything is shown; of several processes of torchrun, the first one alone shows it.
        stream: where to; None: standard error.
        clock: gives seconds.
    """

    def __init__(
        self,
        name: str,
        total: int,
        unit: str = "rows",
        *,
        done: int = 0,
        shown: bool = True,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.name, self.total, self.unit, self.first, self.done = name, total, unit, done, done
        self.stream = sys.stderr if stream is None else stream
        self.shown = shown and not _quiet.get() and os.environ.get("RANK", "0") == "0"
        self.note = ""
        self._clock, self._start = clock, clock()
        self._interval, self._next = INTERVALS[0], self._start + DELAY
        self._lines, self._lock = 0, threading.Lock()
        self._bar: tqdm | None = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._lines and error is None:
            self._write()
        self._lines = 0

    def update(self, count: int, note: str | None = None) -> None:
        """So many more units are done.

        Args:
            note: what else is shown from now on: the best metric so far, say.
        """
        with self._lock:
            self._update(count, note)

    def _update(self, count: int, note: str | None) -> None:
        self.done += count
        if note is not None:
            self.note = note
        if self._bar is not None:
            self._bar.total, self._bar.initial = self.total, self.first
            self._bar.set_postfix_str(self.note, refresh=False)
            self._bar.update(self.done - self._bar.n)
        elif self.shown and self._clock() >= self._next and self.done < self.total:
            if _has_bars(self.stream):
                self._bar = self._new_bar()
            else:
                self._write()
                self._wait_longer()

    def skip(self, count: int) -> None:
        """So many units need not be done: they do not count for the rate."""
        self.first += count
        self.done += count

    def _new_bar(self) -> tqdm:
        bar = tqdm(
            total=self.total,
            initial=self.first,
            desc=self.name,
            unit=self.unit,
            unit_scale=self.unit == BYTES,
            postfix=self.note or None,
            file=self.stream,
            leave=False,
            dynamic_ncols=True,
            smoothing=0,  # the mean rate, as in lines
            delay=1e-9,  # not drawn before it is told what is done
        )
        bar.start_t -= self._clock() - self._start
        bar.update(self.done - self.first)
        bar.refresh()
        return bar

    def _write(self) -> None:
        elapsed = self._clock() - self._start
        line = tqdm.format_meter(
            self.done,
            self.total,
            elapsed,
            ncols=0,
            prefix=self.name,
            unit=self.unit,
            unit_scale=self.unit == BYTES,
            initial=self.first,
            postfix=self.note or None,
        )
        self.stream.write(f"{line}\n")
        self.stream.flush()
        self._lines += 1

    def _wait_longer(self) -> None:
        now = self._clock()
        whole = (now - self._start) * (self.total - self.first) / max(self.done - self.first, 1)
        self._next = now + self._interval
        self._interval = min(2 * self._interval, max(INTERVALS[1], whole / 10))


def _has_bars(stream: TextIO) -> bool:
    """Whether it is a terminal; tqdm draws nothing on one that does not say its size."""
    if not stream.isatty():
        return False
    try:
        return os.get_terminal_size(stream.fileno()).lines > 0
    except OSError:  # no file: of a notebook, say
        return True


class Watched:
    """A loader whose progress is shown when it is iterated over; all else is the loader's own.

    Args:
        loader: one of FuxiCTR's form.
        name, shown: as for `Progress`.
        rows_of: rows of a batch.
    """

    def __init__(self, loader: Any, name: str, shown: bool, rows_of: Callable[[Any], int]):
        self.loader, self.name, self.shown, self.rows_of = loader, name, shown, rows_of

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        if name == "loader":  # it is being copied
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        total, unit = counted(self.loader)
        with Progress(self.name, total, unit, shown=self.shown) as progress:
            for batch in self.loader:
                yield batch
                progress.update(self.rows_of(batch) if unit == "rows" else 1)


def counted(loader: Any) -> tuple[int, str]:
    """How many units a loader gives, and which: rows, or batches where it does not say how many rows it has."""
    rows = getattr(loader, "num_samples", None)
    return (len(loader), "batches") if rows is None else (rows, "rows")
