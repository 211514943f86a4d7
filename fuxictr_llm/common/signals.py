"""SIGTERM, with which batch systems and `kill` end a process: it tidies up first, as after Ctrl-C."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any

AFFECTS_RESULTS = False  # see common/code_digest.py


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


@contextlib.contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """In the block, SIGTERM raises `Terminated`; only Python's main thread hears of it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
