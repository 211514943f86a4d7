"""What is stored, as `ls` lists it and `clean` removes it: entries of the cache; links are left alone everywhere.

What a process makes or uses stays: it holds the entry's lock (common/locks.py), or the folder (common/in_use.py).
"""

import contextlib
import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from fuxictr_llm.common.files import cache_dir, own_folder
from fuxictr_llm.common.in_use import held_alone

AFFECTS_RESULTS = False  # see common/code_digest.py
COMPUTED = re.compile(r"[0-9a-f]{16}")
# Kinds whose entries are named otherwise, or have no manifest.
NAMES = {
    "assets": re.compile(r".+-[0-9a-f]{12}"),
    "models": re.compile(r".+-[0-9a-f]{12}"),
    "downloads": re.compile(r".+\.whl|[0-9a-f]{12}"),
    "digests": re.compile(r"[0-9a-f]{64}\.json"),
    "ssft": COMPUTED,
    "click_tuning": COMPUTED,
}
CHECKPOINT = ".checkpoint"


@dataclass(frozen=True)
class Entry:
    """A file or folder with what it takes on the disk.

    Attributes:
        kind: what it is, a folder of the cache for example.
        size: bytes.
        used: when it was used last, in seconds since 1970.
    """

    kind: str
    path: Path
    size: int
    used: float


def cache_entries() -> list[Entry]:
    """The entries of the cache, by kind and name; what is not ours is left out."""
    entries = []
    for folder in _folders(cache_dir()):
        with os.scandir(folder) as found:
            for item in found:
                if not item.is_symlink() and _is_entry(folder.name, item):
                    entries.append(entry_of(folder.name, Path(item.path)))
    return sorted(entries, key=lambda entry: (entry.kind, entry.path.name))


def _folders(parent: Path) -> Iterator[Path]:
    with contextlib.suppress(FileNotFoundError), os.scandir(parent) as found:
        yield from (Path(item.path) for item in found if item.is_dir(follow_symlinks=False))


def _is_entry(kind: str, item: os.DirEntry[str]) -> bool:
    if kind in NAMES:
        return bool(NAMES[kind].fullmatch(item.name))
    name = item.name.removesuffix(CHECKPOINT)
    whole = name != item.name or Path(item.path, "manifest.json").is_file()
    return bool(COMPUTED.fullmatch(name)) and item.is_dir() and whole


def entry_of(kind: str, path: Path) -> Entry:
    """A file or folder as it is on the disk now."""
    size, used = 0, 0.0
    for part in (path, *_below(path)):
        with contextlib.suppress(FileNotFoundError):  # another process is at work there
            stat = part.lstat()
            size += stat.st_size if not part.is_dir() else 0
            used = max(used, stat.st_mtime)
    return Entry(kind, path, size, used)


def _below(path: Path) -> Iterator[Path]:
    for top, folders, files in os.walk(path):
        yield from (Path(top, name) for name in (*folders, *files))


def remove(entry: Entry) -> bool:
    """Remove an entry of the cache where no process makes or uses it; whether that was so."""
    with not_locked(_locks_of(entry)) as free, contextlib.ExitStack() as stack:
        if not free or entry.path.is_symlink():
            return False
        if entry.path.is_dir() and not stack.enter_context(held_alone(entry.path)):
            return False
        remove_together([entry.path])
    return True


@contextlib.contextmanager
def not_locked(names: Iterable[str]) -> Iterator[bool]:
    """Whether no process holds one of these locks of the cache; in the block, none takes one."""
    with contextlib.ExitStack() as stack:
        try:
            for name in names:
                stack.enter_context(FileLock(cache_dir() / "locks" / f"{name}.lock").acquire(timeout=0))
        except Timeout:
            yield False
        else:
            yield True


def remove_together(paths: Sequence[Path]) -> None:
    """Remove files and folders of one folder; they are renamed first, so that nobody finds half of them."""
    with own_folder(paths[0]) as aside:
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                path.replace(aside / path.name)


def _locks_of(entry: Entry) -> list[str]:
    """The locks that there are of an entry; those of downloads have the names of what is made of them."""
    name = "*" if entry.kind == "downloads" else glob.escape(entry.path.name.removesuffix(CHECKPOINT))
    kind = "assets" if entry.kind == "downloads" else "*"
    return [path.stem for path in (cache_dir() / "locks").glob(f"{kind}-{name}.lock")]


def size_text(size: float) -> str:
    """Bytes in words: 5 kB, 1.2 MB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} B"
