"""A tiny data set with features of every type, made in memory.

Its fields have the names that FuxiCTR's constructors expect by default (`item_id`, `click_history`, ...).

Shape symbols: `B` rows, `L` length of a history.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap
from torch import Tensor

from fuxictr_llm.host.batches import LongBatch

EMBEDDING_DIM = 4
LABELS = ("click", "buy")
HISTORY_LENGTH = 5
POOLED = "layers.MaskedAveragePooling()"
# The histories of item and category; models of a history name them, others have them pooled.
HISTORIES = {"click_history": "item_id", "cate_history": "cate_id"}
NEGATIVES = {"neg_click_history": "item_id", "neg_cate_history": "cate_id"}

_CATEGORICAL = {
    "user_id": ("user", 14),
    "gender": ("user", 4),
    "item_id": ("item", 20),
    "cate_id": ("item", 8),
    "btag": ("context", 6),
}


def tiny_feature_map(
    without: Collection[str] = (),
    whole: Collection[str] = (),
    tasks: int = 1,
    embedding_dim: int = EMBEDDING_DIM,
    dataset_id: str = "tiny",
) -> FeatureMap:
    """The feature map: categorical, numeric, sequence and embedding features of user, item and context, and a meta.

    Args:
        without: types or names of features to leave out.
        whole: names of histories that the model pools itself; the others are averaged. Those of `NEGATIVES` are
            there only if they are named.
        tasks: T, the number of labels, 1 or 2.
    """
    features = OrderedDict()
    for name, (source, vocab_size) in _CATEGORICAL.items():
        features[name] = _ids(source, vocab_size)
    features["price"] = {"type": "numeric", "source": "item"}
    for name, shared in {**HISTORIES, **NEGATIVES}.items():
        if name in HISTORIES or name in whole:
            encoder = {} if name in whole else {"feature_encoder": POOLED}
            length = {"type": "sequence", "max_len": HISTORY_LENGTH, "share_embedding": shared}
            features[name] = _ids("user", _CATEGORICAL[shared][1]) | length | encoder
    features["tags"] = _ids("item", 7) | {"type": "sequence", "max_len": 3, "feature_encoder": POOLED}
    features["image"] = {"type": "embedding", "source": "item", "pretrain_dim": 6}
    features["group_id"] = {"type": "meta"}
    feature_map = FeatureMap(dataset_id, "")
    feature_map.features = OrderedDict(
        (name, spec) for name, spec in features.items() if name not in without and spec["type"] not in without
    )
    feature_map.labels = list(LABELS[:tasks])
    feature_map.num_fields = feature_map.get_num_fields()
    feature_map.default_emb_dim = embedding_dim
    feature_map.set_column_index()
    return feature_map


def tiny_batches(
    feature_map: FeatureMap, rows: int = 150, batch_size: int = 64, seed: int = 0
) -> list[dict[str, Tensor]]:
    """Batches in the form and the dtypes of the loaders; the last one is short, of 150 rows 22.

    Ids are drawn with the unseen value's among them, and some histories are padding only. The labels
    depend on `gender` and `cate_id`, so that there is something to learn.
    """
    draw = np.random.default_rng(seed)
    columns = {name: _column(name, spec, rows, draw) for name, spec in feature_map.features.items()}
    columns |= _labels(columns, feature_map.labels, rows, draw)
    return [{name: column[part] for name, column in _tensors(columns)} for part in _parts(rows, batch_size)]


def tiny_long_batches(feature_map: FeatureMap, rows: int = 150, batch_size: int = 64, seed: int = 0) -> list[LongBatch]:
    """The same in the form of FuxiCTR's LongCTR models, which have a row's history item by item, each with its columns.

    Items are the features with the source `item`; the rows have the others. Item 0 is padding, in front.
    """
    draw = np.random.default_rng(seed)
    items = {name: spec for name, spec in feature_map.features.items() if spec.get("source") == "item"}
    columns = {
        name: _column(name, spec, rows, draw) for name, spec in feature_map.features.items() if name not in items
    }
    mask = _real(rows, HISTORY_LENGTH)
    places = np.concatenate([mask, np.ones((rows, 1), bool)], axis=1)  # the target comes last
    of_items = {}
    for name, spec in items.items():
        drawn = _column(name, spec, places.size, draw)
        shape = (rows, HISTORY_LENGTH + 1, *drawn.shape[1:])
        padded = places.reshape(places.shape + (1,) * (drawn.ndim - 1))
        of_items[name] = np.where(padded, drawn.reshape(shape), np.zeros((), drawn.dtype))
    targets = {name: values[:, -1] for name, values in of_items.items()}
    columns |= _labels({**columns, **targets}, feature_map.labels, rows, draw)
    return [
        (
            {name: column[part] for name, column in _tensors(columns)},
            {name: values[part].flatten(end_dim=1) for name, values in _tensors(of_items)},
            torch.from_numpy(mask[part]).float(),
        )
        for part in _parts(rows, batch_size)
    ]


def _ids(source: str, vocab_size: int) -> dict[str, Any]:
    """Id 0 is padding; the last one is that of unseen values, as in the data sets that FuxiCTR builds."""
    return {"type": "categorical", "source": source, "padding_idx": 0, "vocab_size": vocab_size}


def _column(name: str, spec: Mapping[str, Any], rows: int, draw: np.random.Generator) -> np.ndarray:
    if spec["type"] == "categorical":
        return draw.integers(1, spec["vocab_size"], rows)
    if spec["type"] == "sequence":
        ids = draw.integers(1, spec["vocab_size"], (rows, spec["max_len"])).astype(np.int32)
        return ids if name in NEGATIVES else np.where(_real(rows, spec["max_len"]), ids, np.int32(0))
    if spec["type"] == "embedding":
        return draw.normal(size=(rows, spec["pretrain_dim"])).astype(np.float32)
    if spec["type"] == "meta":
        return draw.integers(0, 5, rows)
    return draw.random(rows)


def _real(rows: int, length: int) -> np.ndarray:
    """`[B, L]`: what is no padding, which is in front. The lengths are 0, 1, ..., L and so on, in all histories."""
    lengths = np.arange(rows) % (length + 1)
    return np.arange(length) >= length - lengths[:, None]


def _labels(
    columns: Mapping[str, np.ndarray], labels: Collection[str], rows: int, draw: np.random.Generator
) -> dict[str, np.ndarray]:
    halves = [columns[name] >= _CATEGORICAL[name][1] / 2 for name in ("gender", "cate_id") if name in columns]
    chance = 0.15 + 0.7 * np.logical_xor.reduce(halves) if halves else np.full(rows, 0.5)
    return {label: (draw.random(rows) < chance / (1 + task)).astype(np.float64) for task, label in enumerate(labels)}


def _tensors(columns: Mapping[str, np.ndarray]) -> list[tuple[str, Tensor]]:
    return [(name, torch.from_numpy(column)) for name, column in columns.items()]


def _parts(rows: int, batch_size: int) -> list[slice]:
    return [slice(start, start + batch_size) for start in range(0, rows, batch_size)]
