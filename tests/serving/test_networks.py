"""Teachers from elsewhere: a run or an export gives the network; one of other data, or damaged, is named."""

import json
from pathlib import Path

import numpy as np
import pytest

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.serving.export import check_same_data, export_run, load_network
from support import edit, expected_of, small_feature_map, steps_of, trained

DATA = {"dataset_id": "small", "rows": {"train": 3}, "sha256": {"train": ["a" * 64], "test": ["b" * 64]}}


@pytest.mark.parametrize("method", [None, "LLaCTR"])
@pytest.mark.parametrize("source", ["export", "runs/a", "runs/a.run.json", "runs"])
def test_a_run_and_its_export_give_the_same_network(source, method, tmp_path):
    model = trained("DeepFM", method)
    if source == "export":
        export_run("runs/a", "export")
    before = set(tmp_path.rglob("*"))
    network, config = load_network(source)
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
    assert (config["model"], config["method"], config["source"]["model_id"]) == ("DeepFM", method, "a")
    for batch in steps_of(model, "DeepFM"):
        assert np.abs(expected_of(network, batch) - expected_of(model, batch)).max() <= 1e-6
    assert set(tmp_path.rglob("*")) == before


def test_networks_that_are_not_there_or_damaged_are_named():
    trained("DNN")
    export_run("runs/a", "export")
    Path("export/model.safetensors").write_bytes(b"garbage")
    Path("empty").mkdir()
    for source, message in (
        ("runs/b", "unknown run 'runs/b'; did you mean 'runs/a'"),
        ("empty", "'empty' holds 0 runs; name one: <model_root>/<dataset_id>/<model_id>"),
        ("export", "'export/model.safetensors' is not the file that was exported"),
    ):
        with pytest.raises(UserError, match=message):
            load_network(source)
    Path("runs/a.model").write_bytes(b"garbage")
    with pytest.raises(UserError, match="'runs/a.model' is damaged"):
        load_network("runs/a")
    edit("export/config.json", '"format": 1', '"format": 7')
    with pytest.raises(UserError, match="has format 7"):
        load_network("export")


@pytest.fixture
def config():
    """Of a network that was trained on DATA."""
    trained("DNN")
    record = json.loads(Path("runs/a.run.json").read_text())
    Path("runs/a.run.json").write_text(json.dumps({**record, "data": DATA}))
    return load_network("runs/a")[1]


def check(config, data=DATA, feature_map=None):
    check_same_data(config, data, feature_map or small_feature_map("DNN"), "teacher 'runs/a'")


def test_the_same_files_are_the_same_data_under_any_name_and_with_more_columns(config):
    check(config)
    check(config, {**DATA, "dataset_id": "small_f7b69d75"})  # FuxiCTR's tuner renames data sets
    feature_map = small_feature_map("DNN")
    feature_map.features["more"] = {"type": "categorical", "vocab_size": 3}
    del feature_map.features["group"]  # a meta column, which no network reads
    check(config, feature_map=feature_map)


def test_other_files_are_named_with_both_data_sets(config):
    other = {"dataset_id": "big", "sha256": {**DATA["sha256"], "train": ["c" * 64]}}
    message = (
        r"teacher 'runs/a' was trained on data set 'small' \(sha256 of train: aaaaaaaaaaaa...\), "
        r"this run's is data set 'big' \(sha256 of train: cccccccccccc...\)"
    )
    with pytest.raises(UserError, match=message):
        check(config, other)
    with pytest.raises(UserError, match="train it on the same files"):  # another test split: it may have seen it
        check(config, {**DATA, "sha256": {**DATA["sha256"], "test": ["c" * 64]}})
    for data in (None, [], {"dataset_id": "small"}):
        with pytest.raises(UserError, match="teacher 'runs/a' does not say which data it was trained on"):
            check({**config, "data": data})


@pytest.mark.parametrize(
    ("column", "changes", "message"),
    [
        ("item", None, "which lacks its column 'item'"),
        ("item", {"vocab_size": 21}, "column 'item' has vocab_size 20 there, 21 here"),
        ("tags", {"max_len": 4}, "column 'tags' has max_len 3 there, 4 here"),
        ("image", {"pretrain_dim": 5}, "column 'image' has pretrain_dim 6 there, 5 here"),
        ("price", {"type": "categorical"}, "column 'price' has type 'numeric' there, 'categorical' here"),
    ],
)
def test_the_same_files_built_in_another_way_are_other_data(config, column, changes, message):
    feature_map = small_feature_map("DNN")
    if changes is None:
        del feature_map.features[column]
    else:
        feature_map.features[column] |= changes
    with pytest.raises(UserError, match=message):
        check(config, feature_map=feature_map)


def test_another_label_is_named(config):
    feature_map = small_feature_map("DNN")
    feature_map.labels = ["like"]
    with pytest.raises(UserError, match=r"with label \['like'\] in place of \['click'\]"):
        check(config, feature_map=feature_map)
