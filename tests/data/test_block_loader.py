"""The loader of data that does not fit in memory: every row once an epoch, in an order that the seed alone decides."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fuxictr.features import FeatureMap

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.data import block_loader
from fuxictr_llm.data.block_loader import BlockLoader
from fuxictr_llm.data.in_memory import InMemoryLoader

ROWS, GROUP = 1000, 60  # 17 row groups, the last one of 40 rows


@pytest.fixture
def split(tmp_path, monkeypatch):
    """A feature map, and a file of row groups of which windows have three."""
    monkeypatch.setattr(block_loader, "WINDOW_ROWS", 3 * GROUP)
    feature_map = FeatureMap("made", str(tmp_path))
    feature_map.features = {"row": {"type": "categorical"}, "tags": {"type": "sequence"}, "size": {"type": "numeric"}}
    feature_map.labels = ["click"]
    tags = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(3 * ROWS, dtype=np.int32)), 3)
    table = pa.table({"size": np.arange(ROWS) / 2, "row": np.arange(ROWS), "tags": tags, "click": np.arange(ROWS) % 2})
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=GROUP)
    return feature_map, str(tmp_path / "train.parquet")


def rows(loader):
    return torch.cat([batch["row"] for batch in loader]).tolist()


def test_in_order_the_batches_are_those_of_the_loader_in_memory(split):
    for batch_size in (7, 64, 700):
        pairs = zip(
            BlockLoader(*split, batch_size=batch_size), InMemoryLoader(*split, batch_size=batch_size), strict=True
        )
        for ours, known in pairs:
            assert [*ours] == [*known]
            for name, column in known.items():
                assert ours[name].dtype == column.dtype and torch.equal(ours[name], column)


@pytest.mark.parametrize("batch_size", [7, 64, 700, 1000])
def test_shuffled_every_row_comes_once_with_all_its_columns(split, batch_size):
    loader = BlockLoader(*split, batch_size=batch_size, shuffle=True, seed=3)
    batches = list(loader)
    assert [len(batch["row"]) for batch in batches] == [batch_size] * (ROWS // batch_size) + (
        [ROWS % batch_size] if ROWS % batch_size else []
    )
    assert len(batches) == len(loader)
    assert sorted(torch.cat([batch["row"] for batch in batches]).tolist()) == [*range(ROWS)]
    for batch in batches:
        row = batch["row"]
        assert torch.equal(batch["size"], row / 2) and torch.equal(batch["click"], row % 2)
        assert torch.equal(batch["tags"].long(), 3 * row.unsqueeze(1) + torch.arange(3))


def test_the_order_is_the_seeds_and_mixes_what_is_far_apart(split):
    one, two, other = (BlockLoader(*split, batch_size=50, shuffle=True, seed=seed) for seed in (1, 1, 2))
    first, second = rows(one), rows(one)
    assert first == rows(two) and second == rows(two) and first != second and first != rows(other)
    assert len({row // GROUP for row in first[:50]}) == 3


def test_an_epoch_goes_on_at_any_batch(split):
    whole = BlockLoader(*split, batch_size=64, shuffle=True, seed=1)
    epochs = [rows(whole), rows(whole)]
    for epoch, batch in ((0, 1), (1, 0), (1, 5), (1, 15)):
        again = BlockLoader(*split, batch_size=64, shuffle=True, seed=1)
        again.start_at(epoch, batch)
        assert rows(again) == epochs[epoch][64 * batch :]


def test_processes_share_its_batches(split):
    whole = list(BlockLoader(*split, batch_size=64, shuffle=True, seed=1))
    parts = [BlockLoader(*split, batch_size=64, shuffle=True, seed=1) for _ in range(2)]
    shares = [list(part.shares(index, 2)) for index, part in enumerate(parts)]
    for batch, *halves in zip(whole, *shares, strict=True):
        assert torch.equal(torch.cat([half["row"] for half in halves]), batch["row"])
    turns = [list(part.batches_in_turn(index, 2)) for index, part in enumerate(parts)]
    assert sum(map(len, turns)) == len(whole)


def test_two_windows_at_most_are_held(split):
    loader = BlockLoader(*split, batch_size=50, shuffle=True)
    rows(loader)
    assert {name: len(held) for name, held in loader._held.items()} == dict.fromkeys(loader._order, 6 * GROUP)


def test_what_cannot_be_read_is_named(split, tmp_path):
    feature_map, path = split
    np.savez(tmp_path / "other.npz", row=np.arange(3))
    with pytest.raises(UserError, match=r"data_loader: blocks reads parquet, and '.*other.npz' is .npz; set memory"):
        BlockLoader(feature_map, str(tmp_path / "other.npz"))
    pq.write_table(pq.read_table(path).drop(["tags"]), tmp_path / "less.parquet")
    with pytest.raises(UserError, match=r"lacks the columns \['tags'\]"):
        BlockLoader(feature_map, str(tmp_path / "less.parquet"))
    table = pq.read_table(path).set_column(0, "size", pa.array([1.0] * (ROWS - 1) + [np.nan]))
    pq.write_table(table, tmp_path / "nan.parquet", row_group_size=GROUP)
    with pytest.raises(UserError, match="column 'size' of built data .* holds nan in row"):
        rows(BlockLoader(feature_map, str(tmp_path / "nan.parquet"), batch_size=50))
