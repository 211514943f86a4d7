"""The cache of computed files: an entry lies under the digest of all that it was made from.

An entry is a folder with a file and `manifest.json`, which says in words what the file was made from and holds its
sha256. An entry that is incomplete, or whose file changed, counts as absent.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from fuxictr_llm.common.code_digest import RESULTS, VECTORS, digest_of_code
from fuxictr_llm.common.files import (
    OTHER_CACHE,
    cache_dir,
    digest_of,
    digest_of_file,
    explain_write_errors,
    read_json,
    remove_abandoned,
    replacing_dir,
    writable_dir,
    write_json,
)
from fuxictr_llm.common.in_use import hold
from fuxictr_llm.common.locks import locked
from fuxictr_llm.common.processes import from_main, is_main

AFFECTS_VECTORS = False  # see common/code_digest.py


def code_of(*modules: str) -> str:
    """Digest of the code of these modules and what they import, as far as it can change vectors."""
    return digest_of_code(modules, marks=(RESULTS, VECTORS))


def entry_dir(kind: str, made_from: Mapping[str, Any]) -> Path:
    """The folder of an entry: its kind, and the digest of what it was made from."""
    return cache_dir() / kind / digest_of(made_from)[:16]


def find(kind: str, made_from: Mapping[str, Any], file_name: str) -> tuple[Path, dict[str, Any]] | None:
    """The entry's file and manifest; None where it has to be made."""
    folder = entry_dir(kind, made_from)
    remove_abandoned(folder.parent)
    hold(folder)
    manifest, path = read_json(folder / "manifest.json"), folder / file_name
    if manifest is None and not folder.exists():
        return None
    if manifest and path.is_file() and manifest.get("sha256") == digest_of_file(path, read_all=True):
        return path, manifest
    logging.warning("%s is damaged: it is computed anew", path)
    return None


def save(
    kind: str,
    made_from: Mapping[str, Any],
    file_name: str,
    write: Callable[[Path], None],
    facts: Mapping[str, Any],
) -> tuple[Path, dict[str, Any]]:
    """Write an entry, whole or not at all; returns its file and manifest.

    Args:
        write: writes the file to the path that it is given.
        facts: more keys of the manifest, besides `made_from` and `sha256`.

    Raises:
        UserError: it cannot be written.
    """
    folder = entry_dir(kind, made_from)
    writable_dir(folder.parent, OTHER_CACHE)
    with explain_write_errors(folder, OTHER_CACHE), replacing_dir(folder) as temporary:
        write(temporary / file_name)
        manifest = {"made_from": made_from, "sha256": digest_of_file(temporary / file_name), **facts}
        write_json(temporary / "manifest.json", manifest)
    hold(folder)
    return folder / file_name, manifest


def find_or_make(
    kind: str,
    made_from: Mapping[str, Any],
    file_name: str,
    make: Callable[[], tuple[Path, dict[str, Any]]],
    together: bool = False,
) -> tuple[Path, dict[str, Any]]:
    """The entry's file and manifest; `make` saves it where it is absent, in one run at a time.

    All processes of torchrun call this, and get the same.

    Args:
        together: whether all of them call `make`, of which the main one saves; else that one alone does.
    """

    def found() -> tuple[Path, dict[str, Any]] | None:
        return from_main(lambda: find(kind, made_from, file_name))

    entry = found()
    if entry is None:
        with entry_locked(kind, made_from) if is_main() else nullcontext():
            entry = found() or (make() if together else from_main(make))
    return entry


@contextmanager
def entry_locked(kind: str, made_from: Mapping[str, Any]) -> Iterator[None]:
    """In the block, other processes that need the same entry wait; afterwards they find it."""
    with locked(f"{kind}-{entry_dir(kind, made_from).name}"):
        yield
