"""The names that a leaderboard is to cross, before torch is imported: a misspelt one is told at once; its folder."""

from collections.abc import Iterable, Sequence
from itertools import product
from pathlib import Path

from fuxictr_llm import registry
from fuxictr_llm.common.errors import unknown
from fuxictr_llm.config.names import Names, names_in

PLAIN = "plain"
ROOT = Path("leaderboards")


def default_folder(names: Iterable[str]) -> Path:
    """The folder of the first plan on these data sets."""
    return ROOT / "-".join(dict.fromkeys(names)).replace("/", "-")


def check_names(backbones: Sequence[str], methods: Sequence[str], datasets: Sequence[str], config: str | None) -> None:
    """Check that a config knows every backbone, method and data set, or the label that they make together.

    Raises:
        UserError: one is unknown.
    """
    if not backbones or not datasets:
        return  # the plan says what is missing
    known = names_in(config)
    for dataset, method, backbone in product(datasets, methods, backbones):
        expid = "_".join([backbone, *([] if method == PLAIN else [method]), dataset])
        if expid not in known.labels:
            _check_parts(expid, backbone, method, dataset, known, config)


def _check_parts(expid: str, backbone: str, method: str, dataset: str, known: Names, config: str | None) -> None:
    where = f"expid {expid!r}"
    if not known.backbones:  # FuxiCTR's form
        raise unknown("expid", expid, known.labels, where=repr(str(config)))
    if dataset not in known.datasets:
        raise unknown("data set", dataset, known.datasets, where)
    if method not in (PLAIN, *known.methods) and ":" not in method:
        raise unknown("method", method, [PLAIN, *known.methods], where)
    if backbone not in known.backbones and ":" not in backbone:
        registry.find_backbone(backbone, where, known.backbones)  # one of a zoo may also be called by its folder
