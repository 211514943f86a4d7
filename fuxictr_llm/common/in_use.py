"""Which folders of the cache a process uses, so that `clean` leaves them, and when each was used last.

A process holds a shared lock (flock) on every folder that it uses, until it ends; the system releases it then in any
case. Who removes a folder needs the lock for itself.
"""

import contextlib
import fcntl
import os
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from fuxictr_llm.common.files import cache_dir

AFFECTS_RESULTS = False  # see common/code_digest.py
FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
MOST = 64  # folders that are held; a run uses fewer, and a process may have only so many files open

_held: OrderedDict[Path, int] = OrderedDict()


def hold(folder: Path) -> None:
    """Use a folder of the cache from now on; it may have been removed, so that its files are looked for afterwards."""
    folder = folder.absolute()
    if not folder.is_relative_to(cache_dir().absolute()):
        return
    with contextlib.suppress(OSError):  # it is not there, another user's, or on a file system without locks
        descriptor = _held.get(folder)
        if descriptor is None or not _is_at(descriptor, folder):
            _let_go(folder)
            _held[folder] = os.open(folder, FLAGS)
            fcntl.flock(_held[folder], fcntl.LOCK_SH)  # waits for a `clean` that is removing it
        while len(_held) > MOST:
            _let_go(next(iter(_held)))
        os.utime(folder)


@contextlib.contextmanager
def held_alone(folder: Path) -> Iterator[bool]:
    """Whether no other process uses a folder; in the block, none begins to."""
    try:
        descriptor = os.open(folder, FLAGS)
    except OSError:
        yield False
        return
    _let_go(folder.absolute())
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


def _let_go(folder: Path) -> None:
    if (descriptor := _held.pop(folder, None)) is not None:
        os.close(descriptor)


def _is_at(descriptor: int, folder: Path) -> bool:
    return folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat())
