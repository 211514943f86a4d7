"""Trained networks from elsewhere, as teachers: read from a run or an export, and checked against a data set."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel

from fuxictr_llm.errors import UserError, nearest
from fuxictr_llm.export_config import CONFIG
from fuxictr_llm.exporting import export_run
from fuxictr_llm.serving import load_model

# What of a column decides about the ids and values that a network reads in it.
DECIDES = {
    "categorical": ("vocab_size",),
    "sequence": ("vocab_size", "max_len"),
    "embedding": ("pretrain_dim",),
    "numeric": (),
}


def load_network(source: Path | str, gpu: int = -1) -> tuple[BaseModel, dict[str, Any]]:
    """A trained network in evaluation mode, without gradients, and the content of its export's config.json.

    Args:
        source: an export's folder, or a run as `export_run` takes it: `<model_root>/<dataset_id>/<model_id>`.
        gpu: index of the GPU, -1 for the CPU.

    Raises:
        UserError: there is none, it is damaged, or its method cannot be served.
    """
    if (Path(source) / CONFIG).is_file():
        served = load_model(source, gpu)
    else:
        with tempfile.TemporaryDirectory() as folder:
            served = load_model(export_run(source, Path(folder) / "network"), gpu)
    features = served.model.feature_map.features
    for name in [name for name, spec in features.items() if spec["type"] == "meta"]:
        del features[name]  # a network does not read it, and the data need not have it
    return served.model, dict(served.config)


def check_same_data(config: Mapping[str, Any], data: Mapping[str, Any], feature_map: FeatureMap, what: str) -> None:
    """Check that ids mean the same to a network as in a data set. The data set may have more columns than it reads.

    Args:
        config: of the network, from `load_network`.
        data: `data` of the run record, from `describe_data`.
        feature_map: of the data set.
        what: names the network in errors, "teacher 'runs/a'" say.

    Raises:
        UserError: it was trained on other files, or its columns are not those of the data set.
    """
    theirs, specs = config.get("data"), feature_map.features
    if not isinstance(theirs, dict) or not theirs.keys() >= {"dataset_id", "sha256"}:
        raise UserError(f"{what} does not say which data it was trained on; train or export it with this version")
    both = f"{what} was trained on {_named(theirs)}, this run's is {_named(data)}"
    if theirs["sha256"] != data["sha256"]:
        raise UserError(f"{both}; train it on the same files")
    if config["feature_map"]["labels"] != feature_map.labels:
        raise UserError(f"{both}, with label {feature_map.labels} in place of {config['feature_map']['labels']}")
    for name, spec in config["feature_map"]["features"].items():
        if spec["type"] not in DECIDES:  # meta columns, which it does not read
            continue
        if name not in specs:
            raise UserError(f"{both}, which lacks its column {name!r}{nearest(name, specs)}")
        for key in ("type", *DECIDES[spec["type"]]):
            if spec.get(key) != specs[name].get(key):
                values = f"{key} {spec.get(key)!r} there, {specs[name].get(key)!r} here"
                raise UserError(f"{both}, built in another way: column {name!r} has {values}")


def _named(data: Mapping[str, Any]) -> str:
    digests = data["sha256"].get("train") or [""]
    return f"data set {data['dataset_id']!r} (sha256 of train: {digests[0][:12]}...)"
