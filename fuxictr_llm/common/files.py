"""Files that are either whole or absent, digests that say whether they changed, locks, and the cache folder.

What is not finished lies in a hidden folder beside its place (`own_folder`). Its process holds a lock (flock) on a file
in that folder; the system releases the lock when the process ends in any way, also in other containers, and the next
process that looks there removes the folder.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.progress import BYTES, Progress

AFFECTS_RESULTS = False  # see common/code_digest.py

LOCK = "owner.lock"
REPLACED = ".replaced"  # holds the folder that another one replaces
NAME = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")
FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
# The errors of a file system without locks; nothing is removed there.
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
LONGEST = 100  # bytes of a path's name that its folder's name repeats; a name has at most 255

_cleaned: set[Path] = set()
# Hashing a gigabyte takes about a second: files above this size are hashed again only when their
# size or time of change differs from the last time.
REMEMBERED_ABOVE = 64 * 2**20
BLOCK = 2**20  # bytes that are read at once
OTHER_CACHE = "move the cache with FUXICTR_LLM_CACHE"
# Messages of safetensors and torch where a disk is full: neither raises an OSError.
TORCH_WRITE_ERRORS = ("file write failed", "failed writing file", "unexpected pos", "iostream error")
WRITE_ERRORS = ("I/O error", "IoError", "os error", *TORCH_WRITE_ERRORS)


@contextlib.contextmanager
def own_folder(beside: Path) -> Iterator[Path]:
    """A temporary folder beside a path, for the block; folders that killed processes left there are removed first."""
    remove_abandoned(beside.parent)
    folder, lock = _locked_folder(beside)
    try:
        yield folder
    finally:
        _put_back(folder)
        _remove(folder)
        os.close(lock)


def remove_abandoned(parent: Path, *, again: bool = False) -> None:
    """Remove the folders of `own_folder` in `parent` whose process is gone.

    Args:
        again: also where this process has done so before.
    """
    parent = parent.absolute()
    if parent in _cleaned and not again:
        return
    _cleaned.add(parent)
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
            _put_back(folder)
            _remove(folder)
            logging.info("Removed %s, which a killed process left", folder)
        finally:
            os.close(lock)


def _put_back(folder: Path) -> None:
    """Of a process that ended while it replaced a folder, put the old one back where the new one is not yet."""
    replaced = folder / REPLACED
    for old in [*replaced.iterdir()] if replaced.is_dir() else []:
        if not os.path.lexists(folder.parent / old.name):
            old.replace(folder.parent / old.name)
            logging.info("Put %s back, which was about to be replaced", folder.parent / old.name)


def _locked_folder(beside: Path) -> tuple[Path, int]:
    """A new folder and the descriptor of its lock, held until it is closed here and in all forked processes."""
    name = beside.name.encode()[:LONGEST].decode(errors="ignore")
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=".tmp", dir=beside.parent))
        # Until the lock is held, another process may remove the folder as an abandoned one.
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
    """Remove a folder, the lock's file last: a half removed folder can still be recognized."""
    with contextlib.suppress(OSError):
        for path in [path for path in folder.iterdir() if path.name != LOCK]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        (folder / LOCK).unlink()
        folder.rmdir()


def cache_dir() -> Path:
    """The folder of downloads, models and vectors; `FUXICTR_LLM_CACHE` moves it."""
    return Path(os.environ.get("FUXICTR_LLM_CACHE") or Path.home() / ".cache" / "fuxictr_llm").expanduser()


@contextlib.contextmanager
def explain_write_errors(path: Path, way_out: str) -> Iterator[None]:
    """Turn a failure to write in the block into a UserError that names `path` and the way out."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write to {str(path)!r}: {error.strerror or error}; {way_out}") from error
    except Exception as error:
        if isinstance(error, UserError) or not any(sign in str(error) for sign in WRITE_ERRORS):
            raise
        raise UserError(f"cannot write to {str(path)!r}: {reason_of(error)}; {way_out}") from error


def writable_dir(path: Path | str, way_out: str) -> Path:
    """Make the folder and check that files can be written in it.

    Raises:
        UserError: it cannot be made or written to; the message ends with `way_out`.
    """
    path = Path(path)
    with explain_write_errors(path, way_out):
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    return path


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path of the same name, which replaces `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with own_folder(path) as folder:
        yield folder / path.name
        (folder / path.name).replace(path)


@contextlib.contextmanager
def replacing_dir(path: Path | str) -> Iterator[Path]:
    """`replacing` for a folder: an old folder at `path` is removed only when the new one is complete.

    Of a link at `path`, the link is replaced: what it points to stays as it is.
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with own_folder(path) as folder:
        temporary = folder / path.name
        temporary.mkdir()
        yield temporary
        if os.path.lexists(path):
            (folder / REPLACED).mkdir()
            path.replace(folder / REPLACED / path.name)
        temporary.replace(path)


def write_json(path: Path | str, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path | str) -> Any:
    """The value in a JSON file; None where the file is absent or damaged, so that it is made anew."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def sizes_of(folder: Path) -> dict[str, int]:
    """File name -> size, of every file in a folder, for a manifest."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}


def not_as_noted(folder: Path, sizes: dict[str, int]) -> list[str]:
    """The files of a manifest that are missing or have another size now."""
    now = sizes_of(folder) if folder.is_dir() else {}
    return [name for name, size in sizes.items() if now.get(name) != size]


def digests_of(folder: Path) -> dict[str, str]:
    """Path -> sha256, of every file in a folder and below it, for a manifest; hidden files are left out."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    visible = [path for path in files if not any(part.startswith(".") for part in path.parts)]
    digests = digests_of_files(folder / path for path in visible)
    return {path.as_posix(): digest for path, digest in zip(visible, digests, strict=True)}


def damaged_files(folder: Path, digests: dict[str, str], *, read_all: bool = True) -> list[str]:
    """The files of a manifest that are missing or have another content now; `read_all` as for `digest_of_file`."""
    there = [name for name in digests if (folder / name).is_file()]
    now = dict(zip(there, digests_of_files((folder / name for name in there), read_all=read_all), strict=True))
    return [name for name, digest in digests.items() if now.get(name) != digest]


def digest_of(value: Any) -> str:
    """sha256 of the canonical JSON of a value: the same in every process, for every order of the keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """One dict of several, for a digest.

    Raises:
        ValueError: two of them share a key, so that one value would be lost.
    """
    union: dict[str, Any] = {}
    for part in parts:
        if shared := sorted(union.keys() & part.keys()):
            raise ValueError(f"two parts of a digest have the key {shared[0]!r}")
        union |= part
    return union


def digest_of_file(path: Path | str, algorithm: str = "sha256", *, read_all: bool = False) -> str:
    """Digest of a file's content; for a large file it is cached, by the file's size and time of change.

    Args:
        read_all: read the file, however large it is: a disk may change it and keep its time of change.
    """
    (digest,) = digests_of_files([path], algorithm, read_all=read_all)
    return digest


def digests_of_files(paths: Iterable[Path | str], algorithm: str = "sha256", *, read_all: bool = False) -> list[str]:
    """`digest_of_file` of several files, with one progress."""
    files = [Path(path).resolve() for path in paths]
    name = files[0].name if len(files) == 1 else f"{len(files)} files"
    with Progress(f"hashing {name}", sum(path.stat().st_size for path in files), BYTES) as progress:
        return [_digest(path, algorithm, read_all, progress) for path in files]


def _digest(path: Path, algorithm: str, read_all: bool, progress: Progress) -> str:
    stat = path.stat()
    if stat.st_size <= REMEMBERED_ABOVE:
        return _hash(path, algorithm, progress)
    stamp = [str(path), stat.st_size, stat.st_mtime_ns]
    note = cache_dir() / "digests" / f"{digest_of(stamp)}.json"
    known = read_json(note)
    if known is None or known.get("stamp") != stamp:
        known = {"stamp": stamp}
    if algorithm in known and not read_all:
        progress.skip(stat.st_size)
    elif known.get(algorithm) != (digest := _hash(path, algorithm, progress)):
        known[algorithm] = digest
        with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
            write_json(note, known)
    return known[algorithm]


def digest_of_folder(folder: Path) -> str:
    """One digest over paths and content of the files in a folder and below it; hidden files are left out."""
    return digest_of(digests_of(folder))


def _hash(path: Path, algorithm: str, progress: Progress) -> str:
    digest = hashlib.new(algorithm)
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            progress.update(len(block))
    return digest.hexdigest()
