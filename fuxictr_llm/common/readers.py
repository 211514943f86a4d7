"""A lock that many processes share while they read files, and that one has alone while it replaces them."""

import contextlib
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

from fuxictr_llm.common import locks
from fuxictr_llm.common.files import NO_LOCKS

AFFECTS_RESULTS = False  # see common/code_digest.py
LOOK = 0.2  # seconds between two tries

_held: dict[Path, "Readers"] = {}


@contextlib.contextmanager
def reading(path: Path, what: str) -> Iterator["Readers"]:
    """In the block, other processes share the lock at most; a block within the block has the same lock.

    Args:
        path: of the lock.
        what: words for what is read, for who waits.
    """
    path = path.absolute()
    if path in _held:
        yield _held[path]
        return
    _held[path] = lock = Readers(path, what)
    try:
        lock.share()
        with locks.noted(path):
            yield lock
    finally:
        del _held[path]
        lock.close()


class Readers:
    """The lock of a file (flock), which the system releases however a process ends.

    Where the file cannot be opened, or its file system has no locks, nobody waits.

    Args:
        path: of the file.
        what: words for what is read.
    """

    def __init__(self, path: Path, what: str):
        self.path, self.what = path, what
        self._file = _opened(path)
        self._waits_since: float | None = None
        self._said = False

    def share(self) -> None:
        """Share it; wait while a process has it alone."""
        while not self._took(fcntl.LOCK_SH):
            self._wait()

    def alone(self) -> bool:
        """Try to have it alone. Where that fails, this process does not even share it until it says so again."""
        if taken := self._took(fcntl.LOCK_EX):
            self._waits_since, self._said = None, False
        return taken

    def wait(self) -> None:
        """Between two tries to have it alone: have no part in it for a moment, which others may use, then share it."""
        self._wait()
        self.share()

    def close(self) -> None:
        """Release it, in processes that were forked meanwhile, too."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                fcntl.flock(self._file, fcntl.LOCK_UN)
            os.close(self._file)

    def _took(self, kind: int) -> bool:
        if self._file is None:
            return True
        try:
            fcntl.flock(self._file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        return True

    def _wait(self) -> None:
        self._waits_since = self._waits_since or time.monotonic()
        if not self._said and time.monotonic() - self._waits_since >= locks.SECONDS_IN_SILENCE:
            logging.warning("Waiting for %s, which uses %s", locks.holder_of(self.path), self.what)
            self._said = True
        time.sleep(LOOK)


def _opened(path: Path) -> int | None:
    """Its descriptor; a folder that cannot be written to may have the file already."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    for flags in (os.O_RDWR | os.O_CREAT, os.O_RDONLY):
        with contextlib.suppress(OSError):
            return os.open(path, flags | os.O_CLOEXEC, 0o666)
    return None
