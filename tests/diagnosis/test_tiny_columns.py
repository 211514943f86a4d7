"""The columns of the tiny data set, in both forms of batches."""

import torch

from fuxictr_llm.diagnosis.tiny_columns import LABELS, tiny_batches, tiny_feature_map, tiny_long_batches
from fuxictr_llm.host.batches import columns_of


def test_every_type_in_the_dtypes_of_the_loaders_and_the_same_for_a_seed():
    feature_map = tiny_feature_map(tasks=2)
    assert {spec["type"] for spec in feature_map.features.values()} == {
        "categorical",
        "embedding",
        "meta",
        "numeric",
        "sequence",
    }
    first, *_, last = tiny_batches(feature_map)
    assert len(last["item_id"]) < len(first["item_id"])
    assert [first[name].dtype for name in ("item_id", "click_history", "price", "click")] == [
        torch.int64, torch.int32, torch.float64, torch.float64,
    ]  # fmt: skip
    assert (first["item_id"] == feature_map.features["item_id"]["vocab_size"] - 1).any(), "no unseen value"
    empty = (first["click_history"] == 0).all(dim=1)
    assert empty.any() and torch.equal(empty, (first["cate_history"] == 0).all(dim=1)), "no history of padding only"
    for label in LABELS:
        assert {*first[label].tolist()} == {0.0, 1.0}
    assert all(torch.equal(column, tiny_batches(feature_map)[0][name]) for name, column in first.items())
    assert not torch.equal(first["item_id"], tiny_batches(feature_map, seed=1)[0]["item_id"])


def test_the_items_of_a_long_batch_are_padding_where_the_mask_says_so_and_the_target_comes_last():
    for rows, items, mask in tiny_long_batches(tiny_feature_map()):
        real = torch.cat([mask, torch.ones(len(mask), 1)], dim=1).flatten().bool()
        assert len(rows["user_id"]) == len(rows["click"]) == len(mask) and (mask.sum(dim=1) == 0).any()
        for name in ("item_id", "cate_id", "price", "image"):
            assert (items[name][~real] == 0).all() and (items[name][real] != 0).any()
        assert torch.equal(columns_of((rows, items, mask))["item_id"], items["item_id"].view(len(mask), -1)[:, -1])
        assert not {*rows} & {*items}
