"""FuxiCTR's loaders for an experiment, and the one for FuxiCTR's LongCTR data.

In LongCTR data each user's history and each item's columns are stored once, and a row refers to both. The built rows
have `user_index`, `item_index` (the target) and `seq_len` (how much of the user's history is before the row).
`user_info`: parquet, its n-th row is the user of index n, `full_item_seq` the items in order. `item_info`: parquet
with `item_index` and the items' columns; item 0 is padding.

Shape symbols: `B` rows, `L` length of a history (`max_len`).
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from torch import Tensor

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.files import digests_of_files, read_json
from fuxictr_llm.config.keys import MAX_LEN
from fuxictr_llm.data import SPLITS
from fuxictr_llm.data.block_loader import BlockLoader
from fuxictr_llm.data.held import MANIFEST, check_build
from fuxictr_llm.data.in_memory import (
    InMemoryLoader,
    check_finite,
    column_names,
    data_files,
    narrow,
    read_columns,
    read_slices,
)
from fuxictr_llm.data.loader_choice import loader_kind
from fuxictr_llm.host.batches import LongBatch

INDEXES = ("user_index", "item_index", "seq_len")
HISTORY = "full_item_seq"
LOADERS = {"memory": InMemoryLoader, "blocks": BlockLoader}


def make_loaders(feature_map: FeatureMap, params: Mapping[str, Any], stage: str) -> Any:
    """FuxiCTR's loaders for `stage` (train: train and valid; test: test), of the kind that `data_loader` says.

    Raises:
        UserError: the data cannot be read, or is no longer what the feature map is of.
    """
    check_build(feature_map)
    kwargs = {key: value for key, value in params.items() if key != "data_loader"}
    if params.get("user_info") or params.get("item_info"):
        kwargs["data_loader"] = long_loader(feature_map, params)
    elif loader := LOADERS.get(loader_kind(feature_map, params)):
        kwargs["data_loader"] = loader
    loaders = RankDataLoader(feature_map, stage=stage, **kwargs)
    # In FuxiCTR's GitHub tree the name is a class, in the released wheel a function that returns the loaders.
    return loaders.make_iterator() if hasattr(loaders, "make_iterator") else loaders


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
    manifest = read_json(data_dir / MANIFEST)
    if manifest and manifest["made_from"]:
        used = [split for split in SPLITS if params.get(f"{split}_data")]  # it may have been built with more
        rows, sha256 = manifest["rows"], manifest["made_from"]["raw"]
        rows, sha256 = ({split: part.get(split) for split in used} for part in (rows, sha256))
        return {"dataset_id": params["dataset_id"], "rows": rows, "sha256": sha256}
    paths = {split: data_files(params[f"{split}_data"]) for split in SPLITS if params.get(f"{split}_data")}
    paths |= {key: data_files(params[key]) for key in ("user_info", "item_info") if params.get(key)}
    digests = {key: digests_of_files(files) for key, files in paths.items()}
    return {"dataset_id": params["dataset_id"], "sha256": digests}


class Histories:
    """The items of every user, one after the other."""

    def __init__(self, path: str):
        try:
            lists = pq.read_table(path, columns=[HISTORY]).column(HISTORY).combine_chunks()
            items = lists.flatten().to_numpy(zero_copy_only=False)
            lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
        except (OSError, KeyError, AttributeError, pa.ArrowException) as error:
            raise UserError(f"user_info {path!r} has no readable column {HISTORY!r} ({reason_of(error)})") from error
        self.path = path
        self.items = torch.from_numpy(np.array(narrow(items)))
        self.starts = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def before(self, users: Tensor, lengths: Tensor, max_len: int, padding: str) -> Tensor:
        """The first `lengths` items of each user `[B]`, cut to `max_len` and padded with 0, both at the side `padding`.

        Returns:
            int64 `[B, L]`.
        """
        starts = self.starts[users].unsqueeze(1)
        real = torch.minimum(lengths, self.starts[users + 1] - self.starts[users]).unsqueeze(1)
        places = torch.arange(max_len).unsqueeze(0)
        if padding == "pre":
            places = places + real - max_len
        is_real = (places >= 0) & (places < real)
        items = self.items[torch.where(is_real, starts + places, 0)] if len(self.items) else torch.zeros(1)
        return torch.where(is_real, items.long(), 0)


class Items:
    """The columns of every item that the feature map has, by the item's index."""

    def __init__(self, path: str, feature_map: FeatureMap):
        names = [name for name in column_names(Path(path)) if name in feature_map.features and name not in INDEXES]
        columns = read_columns([Path(path)], ["item_index", *names])
        check_finite(columns, path)
        index = columns.pop("item_index")
        order = np.argsort(index)
        if not np.array_equal(index[order], np.arange(len(index))):
            raise UserError(f"item_info {path!r} must have each item_index from 0 to {len(index) - 1} once")
        self.size = len(index)
        self.columns = {name: torch.from_numpy(column[order]) for name, column in columns.items()}
        for name, column in self.columns.items():
            if self.size and column[0].any():  # FuxiCTR's poolings add padding up, and divide by what is none
                logging.warning("item_info %s: item 0 is padding, but its %r is not 0; models may diverge", path, name)

    def __len__(self) -> int:
        return self.size

    def of(self, items: Tensor) -> dict[str, Tensor]:
        """Column -> its values for the items, in their order; ids int64, sequences int32."""
        columns = {name: column[items] for name, column in self.columns.items()}
        return {name: column.long() if _are_ids(column) else column for name, column in columns.items()}

    def read_slices(self, path: str, names: list[str], rows: int) -> Iterator[dict[str, np.ndarray]]:
        """As `loader.read_slices`, of the columns of rows and of their target items."""
        own = [name for name in names if name not in self.columns]
        for part in read_slices(path, [*dict.fromkeys([*own, "item_index"])], rows):
            targets = torch.from_numpy(part["item_index"].astype(np.int64))
            _check_range(f"column 'item_index' of {path!r}", targets, len(self))
            columns = self.of(targets)
            yield {name: part[name] if name in own else columns[name].numpy() for name in names}


class LongSequenceLoader(InMemoryLoader):
    """`InMemoryLoader` whose batches are the tuples of FuxiCTR's LongCTR models.

    A batch is (the rows' columns, the items' columns, mask): for the items, `[B * (L + 1)]`, each row's history and
    then its target; the mask, float32 `[B, L]`, is 1 where the history has an item. Every batch has the width L, while
    FuxiCTR's own loader cuts to the longest history of the batch, with which its models of `short_seq_len` fail.

    Args:
        histories, items: read once for all splits.
        max_len: L.
        padding: `pre` keeps the latest items and pads in front; `post`, as in FuxiCTR, keeps the first ones.
        others: as for `InMemoryLoader`.

    Raises:
        UserError: a file lacks a column, or a row refers to a user or an item that is not there.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        data_path: str,
        *,
        histories: Histories,
        items: Items,
        max_len: int = MAX_LEN,
        padding: Literal["pre", "post"] = "pre",
        **others: Any,
    ):
        self.histories, self.items, self.max_len, self.padding = histories, items, max_len, padding
        self._undeclared = [name for name in INDEXES if name not in feature_map.features]
        super().__init__(feature_map, data_path, **others)
        self._check_indexes(data_path)

    def _names(self, feature_map: FeatureMap) -> list[str]:
        return [name for name in (*super()._names(feature_map), *self._undeclared) if name not in self.items.columns]

    def _batch(self, rows: slice | Tensor) -> LongBatch:
        batch = self._columns(rows)
        users, targets, lengths = (batch[name] for name in INDEXES)
        history = self.histories.before(users, lengths, self.max_len, self.padding)
        items = torch.cat([history, targets.unsqueeze(1)], dim=1).flatten()
        columns = {name: column for name, column in batch.items() if name not in self._undeclared}
        return columns, self.items.of(items), (history > 0).float()

    def _check_indexes(self, data_path: str) -> None:
        everything = self._columns(slice(None))
        sizes = {"user_index": len(self.histories), "item_index": len(self.items), "seq_len": 2**31}
        for name, size in sizes.items():
            _check_range(f"column {name!r} of {data_path!r}", everything[name], size)
        _check_range(f"{HISTORY!r} of {self.histories.path!r}", self.histories.items, len(self.items))


def long_loader(feature_map: FeatureMap, params: Mapping[str, Any]) -> Any:
    """What `RankDataLoader` takes as `data_loader` for a config with `user_info` and `item_info`.

    Raises:
        UserError: one of the two is missing or cannot be read, or `data_loader` is ray.
    """
    missing = [key for key in ("user_info", "item_info") if not params.get(key)]
    if missing:
        raise UserError(f"long sequences need user_info and item_info; the data set has no {missing[0]}")
    if params.get("data_loader") == "ray":
        raise UserError("data_loader: ray cannot read long sequences; remove the key")
    histories, items = Histories(params["user_info"]), Items(params["item_info"], feature_map)

    def make(*args: Any, **kwargs: Any) -> LongSequenceLoader:
        return LongSequenceLoader(*args, histories=histories, items=items, **kwargs)

    return make


def _are_ids(column: Tensor) -> bool:
    return column.dim() == 1 and not column.is_floating_point()


def _check_range(what: str, values: Tensor, size: int) -> None:
    if values.is_floating_point():
        raise UserError(f"{what} must hold integers")
    if len(values) and (values.min() < 0 or values.max() >= size):
        wrong = values.min() if values.min() < 0 else values.max()
        raise UserError(f"{what} holds {wrong.item()}; it must be from 0 to {size - 1}")
