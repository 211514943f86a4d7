"""The Hugging Face hub: a model's files, in the hub's own cache."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.full_disk import is_of_full_disk
from fuxictr_llm.llm.bars import Bar

AFFECTS_RESULTS = False  # see common/code_digest.py
WAITS = ("connect", "read", "write", "pool")  # httpx's names


def fetch(name: str, patterns: Sequence[str]) -> Path:
    """The folder of the newest version of a model, with the files whose names are like one of the patterns.

    Raises:
        UserError: the disk is full, or the hub does not answer and the files are not in its cache.
        Exception: whatever the hub's package raises where it has no such model.
    """
    from huggingface_hub import constants, snapshot_download

    limit_waiting()
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), tqdm_class=Bar))
    except Exception as error:
        named = f"language model {name!r} cannot be downloaded"
        if is_of_full_disk(error):
            raise UserError(f"{named}: {reason_of(error)}; move the hub's cache with HF_HOME") from error
        if "Timeout" in reason_of(error) or "Timeout" in type(error).__name__:
            raise UserError(
                f"{named}: {constants.ENDPOINT} did not answer for {constants.HF_HUB_ETAG_TIMEOUT} s; try again later, "
                "name a folder, or set HF_HUB_ETAG_TIMEOUT to more seconds"
            ) from error
        raise


def limit_waiting() -> None:
    """End requests to the hub that get no answer within `HF_HUB_ETAG_TIMEOUT` s (10).

    The hub's package keeps to that limit in some of its requests and waits for ever in the others.
    """
    from huggingface_hub import get_session

    session = get_session()
    if _limited not in session.event_hooks["request"]:
        session.event_hooks = {**session.event_hooks, "request": [*session.event_hooks["request"], _limited]}


def _limited(request: Any) -> None:
    from huggingface_hub import constants

    limits = request.extensions.get("timeout") or {}
    if limits.get("read") is None:
        request.extensions = {**request.extensions, "timeout": dict.fromkeys(WAITS, constants.HF_HUB_ETAG_TIMEOUT)}
