"""The names that a config knows: its backbones, methods and data sets, and labels of whole experiments.

Neither torch nor a method is imported, so that a misspelt name is told at once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fuxictr_llm import registry
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.formats import read_yaml
from fuxictr_llm.config.sources import config_files, entries_of_ours, names_of, packaged_configs

LABEL_KEYS = {"model", "dataset_id"}


class Names(NamedTuple):
    """What a config knows, the packaged names and those registered so far among them.

    Attributes:
        backbones, methods, datasets: the parts of expids; of a config in FuxiCTR's form, which knows whole expids
            alone, there are no such names.
        labels: whole expids that stand in it.
    """

    backbones: list[str]
    methods: list[str]
    datasets: list[str]
    labels: list[str]


def names_in(config: Path | str | None) -> Names:
    """The names of a config: a directory of ours or of FuxiCTR's, or a file; None: of the packaged one.

    Raises:
        UserError: it is not there, or a file of it cannot be read.
    """
    folder = packaged_configs() if config is None else Path(config)
    if folder.is_file():
        return Names([], [], [], sorted(map(str, read_yaml(folder))))
    if not folder.is_dir():
        raise UserError(f"--config {str(folder)!r} is neither a directory nor a YAML file")
    if not (folder / "method_config").is_dir():
        entries = [name for path in config_files(folder, "model_config") for name in read_yaml(path)]
        return Names([], [], [], sorted({*map(str, entries)} - {"Base"}))
    models, methods, datasets = (entries_of_ours(folder, f"{kind}_config") for kind in ("model", "method", "dataset"))
    return Names(
        sorted({*registry.backbone_names(), *names_of(models, "model")}),
        sorted({*registry.method_names(), *names_of(methods, "method")}),
        sorted(datasets),
        sorted(_labels({**models, **methods})),
    )


def _labels(entries: Mapping[str, Any]) -> list[str]:
    return [name for name, entry in entries.items() if (entry or {}).keys() >= LABEL_KEYS]
