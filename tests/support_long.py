"""A small data set in the form of FuxiCTR's LongCTR models, as files."""

import json
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pandas as pd
from fuxictr.features import FeatureMap

MAX_LEN = 4
USERS, ITEMS = 5, 12
FEATURES = OrderedDict(
    gender={"type": "categorical", "source": "user", "padding_idx": 0, "vocab_size": 4},
    item_id={"type": "categorical", "source": "item", "padding_idx": 0, "vocab_size": ITEMS + 1},
    price={"type": "numeric", "source": "item"},
    tags={
        "type": "sequence",
        "source": "item",
        "feature_encoder": "layers.MaskedAveragePooling()",
        "padding_idx": 0,
        "max_len": 3,
        "vocab_size": 7,
    },
    user_index={"type": "meta"},
)


def long_feature_map() -> FeatureMap:
    """Of the files of `long_data`."""
    feature_map = FeatureMap("long", "")
    feature_map.features, feature_map.labels = OrderedDict(FEATURES), ["click"]
    feature_map.num_fields = feature_map.get_num_fields()
    feature_map.default_emb_dim = 4
    feature_map.set_column_index()
    return feature_map


def long_data(folder: Path, rows: int = 40) -> dict:
    """Write the files, histories of 0 to 2 * MAX_LEN items among them; the settings that name them."""
    draw = np.random.default_rng(0)
    folder.mkdir(parents=True)
    histories = [draw.integers(1, ITEMS, length).tolist() for length in (0, 1, MAX_LEN, MAX_LEN + 1, 2 * MAX_LEN)]
    pd.DataFrame({"full_item_seq": histories}).to_parquet(folder / "user_info.parquet")
    index = draw.permutation(ITEMS)  # the order of the file does not count
    items = {
        "item_index": index,
        "item_id": np.where(index > 0, index + 1, 0),
        "price": np.where(index > 0, draw.random(ITEMS), 0),  # item 0 is padding
        "tags": np.where(index[:, None] > 0, draw.integers(0, 7, (ITEMS, 3)), 0).tolist(),
        "name": [f"item {number}" for number in index],
    }
    pd.DataFrame(items).to_parquet(folder / "item_info.parquet")
    for split in ("train", "valid", "test"):
        users = draw.integers(0, USERS, rows)
        gender = draw.integers(1, 4, rows)
        table = {
            "user_index": users,
            "item_index": draw.integers(1, ITEMS, rows),
            "seq_len": [draw.integers(0, len(histories[user]) + 1) for user in users],
            "gender": gender,
            "click": (draw.random(rows) < gender / 4).astype(float),
        }
        pd.DataFrame(table).to_parquet(folder / f"{split}.parquet")
    description = {"dataset_id": folder.name, "num_fields": 4, "total_features": 30, "input_length": 7}
    description |= {"labels": ["click"], "features": [{name: spec} for name, spec in FEATURES.items()]}
    (folder / "feature_map.json").write_text(json.dumps(description), encoding="utf-8")
    splits = {f"{split}_data": str(folder / f"{split}.parquet") for split in ("train", "valid", "test")}
    infos = {key: str(folder / f"{key}.parquet") for key in ("user_info", "item_info")}
    return {**splits, **infos, "max_len": MAX_LEN}
