"""Single files that are published on the web: downloaded once, checked by sha256, kept in the cache."""

import http.client
import logging
import shutil
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.files import (
    OTHER_CACHE,
    cache_dir,
    digest_of_file,
    explain_write_errors,
    own_folder,
    writable_dir,
)
from fuxictr_llm.common.full_disk import is_of_full_disk
from fuxictr_llm.common.in_use import hold

AFFECTS_RESULTS = False  # see common/code_digest.py

TIMEOUT = 30  # seconds without an answer


@dataclass(frozen=True)
class Download:
    """A published file: where it is, its digest and its licence."""

    url: str
    sha256: str
    licence: str

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]


def downloaded(file: Download) -> Path:
    """The file in the cache, fetched where it is not there or damaged.

    Raises:
        UserError: no network and nothing cached, or a file with another content.
    """
    folder = writable_dir(cache_dir() / "downloads" / file.sha256[:12], OTHER_CACHE)
    path = folder / file.name
    hold(folder)
    if path.is_file() and digest_of_file(path, read_all=True) == file.sha256:
        return path
    with explain_write_errors(path, OTHER_CACHE), own_folder(path) as temporary:
        fetched = temporary / file.name
        logging.info("Downloading %s (%s)", file.url, file.licence)
        try:
            with urllib.request.urlopen(file.url, timeout=TIMEOUT) as source, fetched.open("wb") as target:
                shutil.copyfileobj(source, target)
        except (OSError, http.client.HTTPException) as error:
            if is_of_full_disk(error):
                raise
            raise UserError(
                f"cannot download {file.url}: {reason_of(error)}; give the folder that {file.name} is in "
                "(--raw DIR with `prepare`, or --set raw_data=DIR)"
            ) from error
        got = digest_of_file(fetched)
        if got != file.sha256:
            raise UserError(f"{file.url} has sha256 {got}, expected {file.sha256}: it is not used")
        fetched.replace(path)
    return path
