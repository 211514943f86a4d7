"""A JSON record that has a digest of itself: a digit that changes on the disk is noticed when it is read."""

import json
from collections.abc import Mapping
from typing import Any

from fuxictr_llm.common.files import digest_of

AFFECTS_RESULTS = False  # see common/code_digest.py
KEY = "record_sha256"


def sealed(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the digest of all else in it."""
    return {**record, KEY: _digest(record)}


def is_as_sealed(record: Mapping[str, Any]) -> bool:
    """Whether the rest has that digest; those of earlier versions have none."""
    return KEY not in record or record[KEY] == _digest(record)


def _digest(record: Mapping[str, Any]) -> str:
    # Once through JSON: a file gives back lists for tuples, and text for every key.
    return digest_of(json.loads(json.dumps({key: value for key, value in record.items() if key != KEY})))
