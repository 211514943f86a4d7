"""FuxiCTR's LongCTR data: histories as they were before each row, beside their items' columns."""

import numpy as np
import pandas as pd
import pytest
import torch

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.data.loader import long_loader, make_loaders
from fuxictr_llm.host.batches import columns_of
from support_long import MAX_LEN, long_data, long_feature_map


@pytest.fixture
def data(tmp_path):
    return long_data(tmp_path / "data")


def loader(data, split="train", **changes):
    params = {**data, **changes}
    options = {key: params[key] for key in ("max_len", "padding") if key in params}
    return long_loader(long_feature_map(), params)(
        long_feature_map(), params[f"{split}_data"], batch_size=16, **options
    )


@pytest.mark.parametrize("padding", ["pre", "post"])
def test_histories_are_cut_and_padded_at_the_named_side_and_the_target_comes_last(data, padding):
    rows = pd.read_parquet(data["train_data"])
    histories = pd.read_parquet(data["user_info"])["full_item_seq"]
    items = pd.read_parquet(data["item_info"]).set_index("item_index")
    expected = []
    for row in rows.itertuples():
        history = [int(item) for item in histories[row.user_index][: row.seq_len]]
        cut = history[-MAX_LEN:] if padding == "pre" else history[:MAX_LEN]
        zeros = [0] * (MAX_LEN - len(cut))
        expected.append([*zeros, *cut, row.item_index] if padding == "pre" else [*cut, *zeros, row.item_index])
    expected = np.array(expected)
    batches = list(loader(data, padding=padding))
    assert [len(mask) for _, _, mask in batches] == [16, 16, 8]
    mask = torch.cat([mask for *_, mask in batches])
    assert mask.dtype == torch.float32 and np.array_equal(mask.numpy(), expected[:, :-1] > 0)
    for name in ("item_id", "tags"):
        found = torch.cat([of_items[name] for _, of_items, _ in batches]).numpy()
        assert np.array_equal(found, np.array([items[name].loc[item] for item in expected.flatten()]))
    columns = [columns_of(batch) for batch in batches]
    assert torch.cat([part["item_id"] for part in columns]).tolist() == list(items["item_id"].loc[rows.item_index])
    assert torch.cat([part["click"] for part in columns]).tolist() == list(rows["click"])


def test_columns_have_the_loaders_types_and_only_declared_ones_are_there(data):
    rows, items, _ = next(iter(loader(data)))
    assert {name: column.dtype for name, column in rows.items()} == {
        "gender": torch.int64,
        "user_index": torch.int64,
        "click": torch.float64,
    }
    assert {name: column.dtype for name, column in items.items()} == {
        "item_id": torch.int64,
        "price": torch.float64,
        "tags": torch.int32,
    }


def test_the_config_decides_and_shuffling_is_seeded(data):
    params = {**data, "batch_size": 16, "shuffle": True, "seed": 3, "data_format": "parquet"}
    orders = [
        torch.cat([columns_of(batch)["user_index"] for batch in make_loaders(long_feature_map(), params, "train")[0]])
        for _ in range(2)
    ]
    assert torch.equal(*orders) and not torch.equal(orders[0], orders[0].sort().values)


def change(path, **columns):
    pd.read_parquet(path).assign(**columns).to_parquet(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: change(data["train_data"], user_index=99), "column 'user_index' of .* holds 99"),
        (lambda data: change(data["train_data"], item_index=-1), "column 'item_index' of .* holds -1"),
        (lambda data: change(data["train_data"], seq_len=1.5), "column 'seq_len' of .* must hold integers"),
        (lambda data: change(data["user_info"], full_item_seq=[[77]] * 5), "'full_item_seq' of .* holds 77"),
        (lambda data: change(data["user_info"], full_item_seq=3), "user_info .* has no readable column"),
        (lambda data: change(data["item_info"], item_index=1), "must have each item_index from 0 to 11 once"),
        (lambda data: data.update(item_info="nowhere.parquet"), "there is no file 'nowhere.parquet'"),
        (lambda data: data.update(user_info="nowhere.parquet"), "user_info 'nowhere.parquet' has no readable column"),
        (lambda data: data.pop("item_info"), "the data set has no item_info"),
        (lambda data: data.update(data_loader="ray"), "ray cannot read long sequences"),
    ],
)
def test_bad_data_is_named(data, damage, message):
    damage(data)
    with pytest.raises(UserError, match=message):
        loader(data)
