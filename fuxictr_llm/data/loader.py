"""FuxiCTR's loaders for an experiment."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of_file, read_json
from fuxictr_llm.data import SPLITS
from fuxictr_llm.data.build import fits_in_memory
from fuxictr_llm.data.in_memory import InMemoryLoader, data_files, read_slices


def make_loaders(feature_map: FeatureMap, params: Mapping[str, Any], stage: str) -> Any:
    """FuxiCTR's loaders for `stage` (train: train and valid; test: test), of the kind that `data_loader` says."""
    kwargs = {key: value for key, value in params.items() if key != "data_loader"}
    if params.get("user_info") or params.get("item_info"):
        from fuxictr_llm.data.long_sequences import long_loader  # it stands on this module

        kwargs["data_loader"] = long_loader(feature_map, params)
    elif _in_memory(params.get("data_loader", "auto"), feature_map, params):
        kwargs["data_loader"] = InMemoryLoader
    loaders = RankDataLoader(feature_map, stage=stage, **kwargs)
    # In FuxiCTR's GitHub tree the name is a class, in the released wheel a function that returns the loaders.
    return loaders.make_iterator() if hasattr(loaders, "make_iterator") else loaders


def _in_memory(kind: str, feature_map: FeatureMap, params: Mapping[str, Any]) -> bool:
    if kind != "auto":
        return kind == "memory"
    columns = feature_map.input_length + len(feature_map.labels)
    paths = [params[f"{split}_data"] for split in SPLITS if params.get(f"{split}_data")]
    files = [file for path in paths for file in data_files(path)]
    if any(file.suffix == ".npz" for file in files):
        return True
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    if fits_in_memory(rows, columns):
        return True
    logging.info("%d rows x %d columns do not fit in memory: reading with FuxiCTR's Ray loader", rows, columns)
    return False


def check_labels(labels: Sequence[str], params: Mapping[str, Any]) -> None:
    """Check that there is something to learn and to measure: FuxiCTR's metrics fail on labels that are all the same.

    Args:
        labels: those that the model learns.
        params: the settings, which name the splits.

    Raises:
        UserError: a label of a split has one value only, or is missing.
    """
    paths = [params[f"{split}_data"] for split in SPLITS if params.get(f"{split}_data")]
    for path in paths:
        for label in labels:
            bounds: set[float] = set()
            for part in read_slices(path, [label], 100_000):
                bounds |= {float(part[label].min()), float(part[label].max())}
                if len(bounds) > 1:
                    break
            if len(bounds) < 2:
                raise UserError(f"label {label!r} of {path!r} has one value only: nothing can be learnt or measured")


def describe_data(params: Mapping[str, Any], data_dir: Path) -> dict[str, Any]:
    """Digests and row counts of the data a run used."""
    manifest = read_json(data_dir / "build.json")
    if manifest and manifest["made_from"]:
        used = [split for split in SPLITS if params.get(f"{split}_data")]  # it may have been built with more
        rows, sha256 = manifest["rows"], manifest["made_from"]["raw"]
        rows, sha256 = ({split: of.get(split) for split in used} for of in (rows, sha256))
        return {"dataset_id": params["dataset_id"], "rows": rows, "sha256": sha256}
    paths = {split: data_files(params[f"{split}_data"]) for split in SPLITS if params.get(f"{split}_data")}
    paths |= {key: data_files(params[key]) for key in ("user_info", "item_info") if params.get(key)}
    digests = {key: [digest_of_file(path) for path in files] for key, files in paths.items()}
    return {"dataset_id": params["dataset_id"], "sha256": digests}
