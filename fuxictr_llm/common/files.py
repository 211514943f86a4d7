"""Files: digests, JSON, writing beside and renaming, locks, the cache folder, temporary folders."""

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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from fuxictr_llm.common.errors import UserError, reason_of

AFFECTS_RESULTS = False  # see common/code_digest.py

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


# Hashing a gigabyte takes about a second: files above this size are hashed again only when their
# size or time of change differs from the last time.
REMEMBERED_ABOVE = 64 * 2**20
OTHER_CACHE = "move the cache with FUXICTR_LLM_CACHE"


def cache_dir() -> Path:
    """The folder of downloads, models and vectors; `FUXICTR_LLM_CACHE` moves it."""
    return Path(os.environ.get("FUXICTR_LLM_CACHE") or Path.home() / ".cache" / "fuxictr_llm").expanduser()


# What safetensors and torch say of a disk that is full: neither raises an OSError.
TORCH_WRITE_ERRORS = ("file write failed", "failed writing file", "unexpected pos", "iostream error")
WRITE_ERRORS = ("I/O error", "IoError", "os error", *TORCH_WRITE_ERRORS)


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
def locked(name: str) -> Iterator[None]:
    """For the block, no other process is in one of that name: what they would make in the cache is made once."""
    with FileLock(writable_dir(cache_dir() / "locks", OTHER_CACHE) / f"{name}.lock"):
        yield


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path of the same name; it takes the place of `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with own_folder(path) as folder:
        yield folder / path.name
        (folder / path.name).replace(path)


@contextlib.contextmanager
def replacing_dir(path: Path | str) -> Iterator[Path]:
    """As `replacing`, for a whole folder: an old folder at `path` goes away only when the new one is whole."""
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    with own_folder(path) as folder:
        temporary = folder / path.name
        temporary.mkdir()
        yield temporary
        if path.exists():
            path.replace(folder / f"{path.name}.old")
        temporary.replace(path)


def write_json(path: Path | str, value: Any) -> None:
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path | str) -> Any:
    """The value in a JSON file; None where the file is absent or damaged, so that it is made anew."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def sizes_of(folder: Path) -> dict[str, int]:
    """The size of every file in a folder, to be noted in a manifest."""
    return {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}


def not_as_noted(folder: Path, sizes: dict[str, int]) -> list[str]:
    """The noted files that are missing or have another size now."""
    now = sizes_of(folder) if folder.is_dir() else {}
    return [name for name, size in sizes.items() if now.get(name) != size]


def digests_of(folder: Path) -> dict[str, str]:
    """The sha256 of every file in a folder and below it, to be noted in a manifest; hidden ones do not count."""
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    seen = [path for path in files if not any(part.startswith(".") for part in path.parts)]
    return {path.as_posix(): digest_of_file(folder / path) for path in seen}


def damaged_files(folder: Path, digests: dict[str, str]) -> list[str]:
    """The noted files that are missing or have another content now; see `digest_of_file` on large ones."""
    paths = {name: folder / name for name in digests}
    return [name for name, path in paths.items() if not path.is_file() or digest_of_file(path) != digests[name]]


def digest_of(value: Any) -> str:
    """sha256 of the canonical JSON of a value: the same in every process, for every order of the keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """One dict of several, for a digest.

    Raises:
        ValueError: two of them share a key: one value would stand for both.
    """
    found: dict[str, Any] = {}
    for part in parts:
        if shared := sorted(found.keys() & part.keys()):
            raise ValueError(f"two parts of a digest have the key {shared[0]!r}")
        found |= part
    return found


def digest_of_file(path: Path | str, algorithm: str = "sha256", *, read_all: bool = False) -> str:
    """Digest of a file's content; that of a large file whose size and time did not change is remembered in the cache.

    Args:
        read_all: the file is read, however large it is.
    """
    path = Path(path).resolve()
    stat = path.stat()
    if read_all or stat.st_size <= REMEMBERED_ABOVE:
        return _hash(path, algorithm)
    stamp = [str(path), stat.st_size, stat.st_mtime_ns]
    note = cache_dir() / "digests" / f"{digest_of(stamp)}.json"
    known = read_json(note)
    if known is None or known.get("stamp") != stamp:
        known = {"stamp": stamp}
    if algorithm not in known:
        known[algorithm] = _hash(path, algorithm)
        with contextlib.suppress(OSError):  # a cache that cannot be written only costs time
            write_json(note, known)
    return known[algorithm]


def digest_of_folder(folder: Path) -> str:
    """One digest over names and content of the files in a folder and below it; hidden ones do not count."""
    return digest_of(digests_of(folder))


def _hash(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
