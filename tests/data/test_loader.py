"""The in-memory loader: every row once an epoch, the same batches for the same seed, FuxiCTR's types."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fuxictr.features import FeatureMap

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.block_loader import BlockLoader
from fuxictr_llm.data.build import built_data
from fuxictr_llm.data.in_memory import InMemoryLoader, read_columns, read_slices
from fuxictr_llm.data.loader import check_labels, make_loaders


@pytest.fixture
def shop(configs):
    params = load_experiment("DeepFM_shop", configs).params
    params |= built_data(params)
    feature_map = FeatureMap("shop", f"{params['data_root']}/shop")
    feature_map.load(f"{params['data_root']}/shop/feature_map.json", params)
    return feature_map, params


def rows(loader):
    batches = list(loader)
    columns = [torch.cat([batch[name] for batch in batches]).reshape(loader.num_samples, -1) for name in batches[0]]
    return torch.cat([column.double() for column in columns], dim=1)


def load(shop, batch_size=128, split="train", **changes):
    feature_map, params = shop
    return InMemoryLoader(feature_map, params[f"{split}_data"], batch_size=batch_size, **changes)


def test_an_epoch_has_every_row_once_and_a_shorter_last_batch(shop):
    ordered, shuffled = load(shop), load(shop, shuffle=True, seed=1)
    assert [len(batch["click"]) for batch in shuffled] == [128] * 7 + [4] and len(shuffled) == 8
    a, b = rows(ordered), rows(shuffled)
    assert not torch.equal(a, b)
    assert torch.equal(torch.tensor(sorted(a.tolist())), torch.tensor(sorted(b.tolist())))


def test_the_same_seed_gives_the_same_batches_and_epochs_differ(shop):
    one, two, other = (load(shop, shuffle=True, seed=seed) for seed in (1, 1, 2))
    torch.manual_seed(0)
    first = rows(one)
    torch.rand(5)
    assert torch.equal(first, rows(two))
    second = rows(one)
    assert torch.equal(second, rows(two)) and not torch.equal(first, second)
    assert not torch.equal(first, rows(other))


def test_shuffling_leaves_other_random_numbers_alone(shop):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    rows(load(shop, shuffle=True))
    assert torch.equal(torch.rand(3), expected)


def test_types_and_shapes_are_fuxictrs(shop):
    batch = next(iter(load(shop)))
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in batch.items()} == {
        "color": (torch.int64, (128,)),
        "city": (torch.int64, (128,)),
        "user": (torch.int64, (128,)),
        "tags": (torch.int32, (128, 3)),
        "click": (torch.float64, (128,)),
    }


@pytest.mark.ray
def test_fuxictrs_own_loader_reads_the_same_rows(shop):
    feature_map, params = shop
    params = {**params, "batch_size": 64}  # 150 rows: the last batch has 22
    theirs = list(make_loaders(feature_map, {**params, "data_loader": "ray"}, "test"))
    ours = list(make_loaders(feature_map, params, "test"))
    assert len(theirs) == len(ours) == 3
    for a, b in zip(theirs, ours, strict=True):
        assert type(a) is type(b) and a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def test_npz_and_folders_of_parts_are_read_too(shop, tmp_path):
    feature_map, _ = shop
    whole = load(shop)
    columns = {name: torch.cat([batch[name] for batch in whole]).numpy() for name in [*feature_map.features, "click"]}
    (tmp_path / "parts").mkdir()
    for part, cut in enumerate((slice(0, 500), slice(500, None))):
        np.savez(tmp_path / "parts" / f"part-{part}.npz", **{name: values[cut] for name, values in columns.items()})
    np.savez(tmp_path / "all.npz", **columns)
    for path in (tmp_path / "parts", tmp_path / "all", tmp_path / "all.npz"):
        assert torch.equal(rows(InMemoryLoader(feature_map, str(path), batch_size=128)), rows(whole))


def test_lists_of_different_lengths_are_named(shop, tmp_path):
    feature_map, _ = shop
    columns = {name: [1, 2, 3] for name in [*feature_map.features, "click"]} | {"tags": [[1], [2, 3], [4]]}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match="column 'tags' of .* holds lists of different lengths; pad them"):
        InMemoryLoader(feature_map, str(tmp_path / "rows.parquet"))


def test_missing_files_and_columns_are_named(shop, tmp_path):
    feature_map, _ = shop
    with pytest.raises(UserError, match="built data .* is missing"):
        InMemoryLoader(feature_map, str(tmp_path / "absent"))
    np.savez(tmp_path / "few.npz", color=np.zeros(3, int))
    with pytest.raises(
        UserError, match=r"lacks the columns \['city', 'user', 'tags', 'click'\] that the feature map has"
    ):
        InMemoryLoader(feature_map, str(tmp_path / "few.npz"))


def test_a_label_that_is_the_same_in_all_rows_is_named(shop):
    path = shop[1]["valid_data"]
    table = pq.read_table(path)
    clicks = table.schema.get_field_index("click")
    pq.write_table(table.set_column(clicks, "click", pa.array(np.ones(len(table)))), path)
    with pytest.raises(UserError, match=r"label 'click' of '.*valid.parquet' has one value only"):
        check_labels(shop[0].labels, shop[1])


def test_python_objects_in_an_npz_are_not_unpickled(shop, tmp_path):
    feature_map = shop[0]
    np.savez(tmp_path / "objects.npz", **dict.fromkeys([*feature_map.features, "click"], np.array([print] * 3)))
    with pytest.raises(UserError, match="objects.npz' is damaged .Object arrays cannot be loaded"):
        list(InMemoryLoader(feature_map, str(tmp_path / "objects.npz")))


@pytest.mark.parametrize("name", ["train.npz", "train.parquet"])
@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"junk"])
def test_a_damaged_file_is_named(shop, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{name}' is damaged .*; remove it and build or download it again"):
        InMemoryLoader(shop[0], str(tmp_path / name))


@pytest.mark.parametrize("loader", [InMemoryLoader, BlockLoader])
@pytest.mark.parametrize("place", ["page", "footer"])
def test_a_damaged_part_of_parquet_is_named(shop, tmp_path, loader, place):
    path, source = tmp_path / "train.parquet", Path(shop[1]["train_data"]).read_bytes()
    start = 4 if place == "page" else len(source) - 400
    path.write_bytes(source[:start] + b"\xff" * 200 + source[start + 200 :])
    for read in (
        lambda: list(loader(shop[0], str(path), batch_size=64)),
        lambda: read_columns([path], [*shop[0].features, "click"]),
        lambda: list(read_slices(str(path), [*shop[0].features, "click"], 100)),
    ):
        with pytest.raises(UserError, match="train.parquet' is damaged .*; remove it and build or download it again"):
            read()
