"""A leaderboard's folder is one process's at a time."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import writable_dir
from fuxictr_llm.common.locks import holder_of, noted
from fuxictr_llm.leaderboard.run.results import OTHER_OUT


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """For the block, no other leaderboard writes to the folder.

    Raises:
        UserError: another does (it says who), or it cannot be written to.
    """
    path = writable_dir(folder, OTHER_OUT) / ".lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        way_out = f"wait until it is done, or {OTHER_OUT}"
        raise UserError(f"{str(folder)!r} is in use by {holder_of(path)}; {way_out}") from error
    try:
        with noted(path):
            yield
    finally:
        lock.release()
