"""Locks of files between processes, with a note on who holds each."""

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from fuxictr_llm.common.files import OTHER_CACHE, cache_dir, read_json, writable_dir, write_json

AFFECTS_RESULTS = False  # see common/code_digest.py
SECONDS_IN_SILENCE = 10.0


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """In the block, no other process is in a block of that name: what several need in the cache is made once.

    Who waits for long says for whom.
    """
    path = writable_dir(cache_dir() / "locks", OTHER_CACHE) / f"{name}.lock"
    lock = FileLock(path)
    try:
        lock.acquire(timeout=SECONDS_IN_SILENCE)
    except Timeout:
        logging.warning("Waiting for %s, which makes what is needed here (%s)", holder_of(path), name)
        lock.acquire()
    try:
        with noted(path):
            yield
    finally:
        lock.release()


@contextlib.contextmanager
def noted(lock: Path) -> Iterator[None]:
    """In the block, this process is the one that `holder_of` names, if the disk has room for its name."""
    facts = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    note = _note(lock)
    with contextlib.suppress(OSError):
        write_json(note, facts)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            note.unlink()


def holder_of(lock: Path) -> str:
    """Words for the process that holds a lock."""
    facts = read_json(_note(lock))
    if isinstance(facts, dict) and facts.keys() >= {"pid", "host", "since"}:
        return "process {pid} on {host} since {since}".format(**facts)
    return "another process"


def _note(lock: Path) -> Path:
    return lock.with_name(f"{lock.name}.json")
