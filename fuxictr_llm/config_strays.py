"""What stands in a config directory and is never read: a misspelt entry leaves the defaults without a word."""

import functools
import logging
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from fuxictr_llm.errors import nearest


def warn_of_files(folder: Path, kind: str) -> None:
    """Files of a kind of config that are passed over: `.yml`, or a folder beside the file of its name."""
    strays = [*folder.glob(f"{kind}.yml"), *(folder / kind).glob("*.yml")]
    for path in sorted(strays):
        _warn(f"{str(path)!r} is not read: FuxiCTR's configs end in .yaml")
    if (folder / f"{kind}.yaml").exists() and any((folder / kind).glob("*.yaml")):
        _warn(f"{str(folder / kind)!r} is not read, because {kind}.yaml is there; leave one of the two")


def warn_of_entries(
    folder: Path,
    kind: str,
    entries: Mapping[str, Any],
    named: Collection[str],
    methods: Collection[str],
    datasets: Iterable[str],
) -> None:
    """Entries that no expid reads.

    Args:
        kind: `model_config` or `method_config`.
        entries: the user's own of that kind.
        named: the backbones, or the methods, that such an entry may be of.
        methods, datasets: what may follow in its name.
    """
    ends = {*datasets} | {f"{method}_{dataset}" for method in methods for dataset in datasets}
    for name, entry in entries.items():
        is_label = {"model", "dataset_id"} <= (entry or {}).keys()
        heads = [head for head in named if name.startswith(f"{head}_")]
        if name in named or is_label or any(name[len(head) + 1 :] in ends for head in heads):
            continue
        starts = heads or [head for head in named if name.partition("_")[0] == head]
        hint = nearest(name, [*named, *(f"{head}_{end}" for head in starts for end in ends)])
        _warn(f"entry {name!r} of {str(folder / kind)!r} is read by no expid: it names no known part{hint}")


@functools.cache  # a leaderboard reads the same configs for every arm
def _warn(message: str) -> None:
    logging.warning(message)
