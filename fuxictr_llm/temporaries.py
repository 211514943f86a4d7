"""Folders for what is not finished yet, beside its place: each belongs to a process, and goes when that is gone.

The owner holds a lock (flock) on a file in its folder. The system takes the lock from a process that ends in whatever
way, and tells processes of other containers apart, which ids of processes do not.
"""

import contextlib
import errno
import fcntl
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

LOCK = "owner.lock"
NAME = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")
FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
# What a file system without locks says: nothing is removed there.
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
LONGEST = 100  # bytes of a name that are repeated; a file's name has 255 at most

_looked_through: set[Path] = set()


@contextlib.contextmanager
def own_folder(beside: Path) -> Iterator[Path]:
    """A folder beside a path, which exists for the block; those that killed processes left there are removed first."""
    remove_abandoned(beside.parent)
    folder, lock = _locked_folder(beside)
    try:
        yield folder
    finally:
        _remove(folder)
        os.close(lock)


def remove_abandoned(parent: Path, *, again: bool = False) -> None:
    """Remove the folders of `own_folder` in `parent` whose process is gone.

    Args:
        again: also where this process has looked before.
    """
    parent = parent.absolute()
    if parent in _looked_through and not again:
        return
    _looked_through.add(parent)
    with contextlib.suppress(OSError):  # not there, or another user's
        for entry in list(os.scandir(parent)):
            if NAME.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False):
                _remove_if_abandoned(Path(entry.path))


def _remove_if_abandoned(folder: Path) -> None:
    with contextlib.suppress(OSError):  # its owner is alive, or it is another user's
        names = [path.name for path in folder.iterdir()]
        if names and LOCK not in names:  # not ours
            return
        lock = os.open(folder / LOCK, FLAGS, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(folder)
            logging.info("Removed %s, which a killed process left", folder)
        finally:
            os.close(lock)


def _locked_folder(beside: Path) -> tuple[Path, int]:
    """A new folder, and the descriptor of its lock: held until it is closed, here and in processes forked meanwhile."""
    name = beside.name.encode()[:LONGEST].decode(errors="ignore")
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=beside.parent))
        # Until the lock is held, another process may take the folder for an abandoned one.
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(folder / LOCK, FLAGS, 0o644)
            if _hold(lock) and _is_at(lock, folder / LOCK):
                return folder, lock
            os.close(lock)


def _hold(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            os.close(lock)
            raise
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    return path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())


def _remove(folder: Path) -> None:
    """The lock's file last: what is half removed is still known for what it is."""
    with contextlib.suppress(OSError):
        for path in [path for path in folder.iterdir() if path.name != LOCK]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        (folder / LOCK).unlink()
        folder.rmdir()
