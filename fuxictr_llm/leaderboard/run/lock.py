"""A leaderboard's folder is one process's at a time."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import explain_write_errors, read_json, writable_dir, write_json
from fuxictr_llm.leaderboard.run.results import OTHER_OUT


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """For the block, no other leaderboard writes to the folder.

    Raises:
        UserError: another does (it says who), or it cannot be written to.
    """
    writable_dir(folder, OTHER_OUT)
    lock, holder = FileLock(folder / ".lock"), folder / ".lock.json"
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        held_by, who = read_json(holder), "another process"
        if isinstance(held_by, dict) and held_by.keys() >= {"pid", "host", "since"}:
            who = "process {pid} on {host} since {since}".format(**held_by)
        raise UserError(f"{str(folder)!r} is in use by {who}; wait until it is done, or {OTHER_OUT}") from error
    try:
        facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with explain_write_errors(holder, OTHER_OUT):
            write_json(holder, facts)
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()
