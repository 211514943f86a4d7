"""The packaged data sets of the BARS boards, on small generated files in the published forms."""

import json
from pathlib import Path

import h5py
import pyarrow.parquet as pq
import pytest

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.config.sources import dataset_names
from fuxictr_llm.data.build import built_data
from fuxictr_llm.data.field_words import read_field_config
from fuxictr_llm.experiment.run import run_experiment
from fuxictr_llm.host.columns import feature_columns
from fuxictr_llm.llm.catalog import load_catalog
from raw_forms import ROWS, write_published

BOARDS = [
    "amazonelectronics_x1",
    "avazu_x1",
    "avazu_x4_001",
    "avazu_x4_002",
    "criteo_x1",
    "criteo_x4_001",
    "criteo_x4_002",
    "frappe_x1",
    "kkbox_x1",
    "kuaivideo_x1",
    "microvideo1.7m_x1",
    "movielenslatest_x1",
    "taobaoad_x1",
]


def load(dataset_id, backbone="DeepFM", **overrides):
    experiment = load_experiment(f"{backbone}_{dataset_id}", overrides={"num_threads": 1, **overrides})
    write_published(experiment.params)
    return experiment


def built(dataset_id, **overrides):
    """What was built of a data set: files, feature map and vocabulary."""
    files = built_data(load(dataset_id, **overrides).params)
    folder = Path("data") / dataset_id
    features = json.loads((folder / "feature_map.json").read_text())["features"]
    vocabulary = json.loads((folder / "feature_vocab.json").read_text())
    return files, {name: spec for column in features for name, spec in column.items()}, vocabulary


@pytest.mark.parametrize("dataset_id", BOARDS)
def test_every_board_builds_and_its_texts_are_in_the_vocabulary(dataset_id):
    files, features, vocabulary = built(dataset_id)
    assert len(pq.read_table(files["train_data"])) == ROWS["train"]
    texts = json.loads((Path("data") / dataset_id / "field_texts.json").read_text())
    assert list(texts) == [name for name, spec in features.items() if spec["type"] != "meta"]
    for name, text in texts.items():
        if features[name]["type"] == "numeric":
            assert set(text) == {"quantiles"} and text["quantiles"] == sorted(text["quantiles"])
        else:
            assert set(text["values"]) <= set(vocabulary[name]) and text["distinct"] == len(text["values"]) > 0


@pytest.mark.parametrize("dataset_id", dataset_names())
def test_every_field_of_every_data_set_has_words_of_its_own(dataset_id):
    params = load_experiment(f"FM_{dataset_id}").params
    words = read_field_config(params["field_config"])
    names = {col["name"] for col in feature_columns(params) if col["active"] and col["type"] != "meta"}
    assert set(words["fields"]) == names and words["about"]
    assert len(set(words["fields"].values())) == len(names)
    anonymous = {name for name, text in words["fields"].items() if text.startswith("anonymous ")}
    expected = {
        "criteo": names,
        "avazu_x1": names,
        "avazu_x4": {"C1", *(f"C{i}" for i in range(14, 22))},
    }
    assert anonymous == expected.get(params["field_config"], set())


@pytest.mark.parametrize("dataset_id", ["amazonelectronics_x1", "kuaivideo_x1", "microvideo1.7m_x1", "taobaoad_x1"])
def test_four_boards_validate_on_the_test_file(dataset_id):
    params = load_experiment(f"FM_{dataset_id}").params
    assert params["valid_data"] == params["test_data"] and "valid.csv" not in params["md5"]


def test_avazu_reads_the_time(caplog):
    _, features, vocabulary = built("avazu_x4_001")
    assert "id" not in features and set(vocabulary["hour"]) <= {*map(str, range(24)), "__PAD__", "__OOV__"}
    experiment = load_experiment("FM_avazu_x4_001")
    feature_map = type("Map", (), {"features": features})
    catalog = load_catalog(feature_map, Path("data/avazu_x4_001"), experiment.params["field_config"])
    values = {field.name: set(field.values) for field in catalog.fields}
    assert values["weekend"] == {"working day", "weekend"} and "Sunday" in values["weekday"]


def test_criteo_x4_leaves_out_missing_counts_and_rare_hashes():
    _, _, rare = built("criteo_x4_001")
    texts = json.loads(Path("data/criteo_x4_001/field_texts.json").read_text())
    assert "0" not in texts["I1"]["values"]
    assert "" not in texts["C1"]["values"]
    assert "0" not in rare["I1"]
    assert min(texts["I1"]["counts"]) >= 10
    _, _, common = built("criteo_x4_002")
    assert len(common["I1"]) > len(rare["I1"])


def test_kkbox_splits_genres_at_spaces():
    _, features, vocabulary = built("kkbox_x1")
    assert set(vocabulary["genre_ids"]) == {"0", "1", "2", "3", "__PAD__", "__OOV__"}
    assert features["genre_ids"]["feature_encoder"] == "layers.MaskedSumPooling()"
    assert set(vocabulary["isrc"]) == {"TW", "US", "GB", "__PAD__", "__OOV__"} and "7" in vocabulary["bd"]


@pytest.mark.parametrize(
    ("backbone", "dataset_id", "changes"),
    [
        ("DeepFM", "criteo_x4_001", {}),
        ("FinalMLP", "kkbox_x1", {}),
        ("DeepFM", "kuaivideo_x1", {"embedding_dim": 64}),
        ("DeepFM", "microvideo1.7m_x1", {"embedding_dim": 64}),
        ("DCNv2", "taobaoad_x1", {"group_id": "group_id", "metrics": ["gAUC", "AUC"]}),
    ],
)
def test_runs_end_with_metrics(backbone, dataset_id, changes):
    result = run_experiment(load(dataset_id, backbone, epochs=1, verbose=0, **changes))
    assert all(
        0 <= result.record["metrics"]["test"][name] <= 1 for name in ("AUC", "gAUC")[: 1 + ("group_id" in changes)]
    )


def test_llactr_runs_on_anonymous_fields(tiny_settings):
    result = run_experiment(
        load("criteo_x1", "DeepFM_LLaCTR", epochs=1, verbose=0, **{**tiny_settings, "ssft_epochs": 0})
    )
    assert len(result.model.enhancement.anatomy.fields) == 39


def test_changed_vectors_are_noticed_and_missing_ones_named():
    params = load("kuaivideo_x1").params
    built_data(params)
    vectors = Path("data/raw/kuaivideo_x1/item_visual_emb_dim64.h5")
    stamp = Path("data/kuaivideo_x1/build.json").stat().st_mtime_ns
    with h5py.File(vectors, "r+") as file:
        file["value"][0] = 0.0
    built_data(params)
    assert Path("data/kuaivideo_x1/build.json").stat().st_mtime_ns > stamp
    vectors.unlink()
    with pytest.raises(UserError, match="pretrained_emb '.*dim64.h5' of column 'item_emb' is missing"):
        built_data(params)


def test_files_without_the_columns_are_named():
    params = load("criteo_x4_001").params
    Path(params["valid_data"]).write_text(Path(params["valid_data"]).read_text().replace("C26", "C27"))
    with pytest.raises(UserError, match=r"criteo_x4/valid.csv' has no column 'C26'; did you mean"):
        built_data(params)
