"""Test metrics by item frequency: slices by hand, FuxiCTR's own metrics, every form of data, bad columns."""

import logging
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.loader import make_loaders
from fuxictr_llm.data.slices import SLICES, FrequencySlices, item_column, predict, slices_table
from fuxictr_llm.experiment.preparation import prepare_run
from fuxictr_llm.experiment.run import build_model
from support import edit, small_feature_map, vocabulary


@pytest.mark.parametrize(
    ("counts", "rare", "middle", "head"),
    [
        ([1, 2, 3, 4, 10], [1, 2], [3, 4], [10]),  # a tenth of 20 is reached with the second, half with the last
        ([10, 1, 4, 2, 3], [1, 2], [3, 4], [10]),
        ([1, 1, 1, 1, 6, 6, 6, 6], [1, 1, 1, 1], [], [6, 6, 6, 6]),  # items of equal count stay together
        ([1, 2, 8, 8, 9], [1, 2], [], [8, 8, 9]),
        ([5, 5, 5], [], [], [5, 5, 5]),
        ([3, 27], [3], [], [27]),  # exactly a tenth
        ([7], [], [], [7]),
        ([], [], [], []),
    ],
)  # fmt: skip
def test_bounds_are_shares_of_the_train_rows(counts, rare, middle, head):
    slices = FrequencySlices("item", np.arange(1, len(counts) + 1), np.array(counts, dtype=int))
    one_row_each = np.arange(len(counts) + 2)  # the first and the last are not in train
    found = slices.of_predictions(one_row_each, one_row_each % 2, np.full(len(one_row_each), 0.5))
    assert found["by"] == "item" and tuple(found["slices"]) == SLICES
    for name, expected in {"rare": rare, "middle": middle, "head": head}.items():
        facts = found["slices"][name]
        assert (facts["rows"], facts["items"]) == (len(expected), len(expected)), name
        assert facts["train_rows"] == ([min(expected), max(expected)] if expected else None), name
    unseen = found["slices"]["unseen"]
    assert (unseen["train_rows"], unseen["rows"], unseen["items"]) == ([0, 0], 2, 2)


def test_metrics_are_those_of_the_rows_of_a_slice_and_of_one_class_there_is_no_auc():
    draw = np.random.default_rng(0)
    slices = FrequencySlices("item", np.array([2, 5, 7]), np.array([1, 4, 20]))
    items, labels, predictions = draw.choice([2, 5, 7], 300), draw.integers(0, 2, 300), draw.random(300)
    labels[items == 2] = 1
    found = slices.of_predictions(items, labels, predictions)["slices"]
    for name, item in {"rare": [2, 5], "head": [7]}.items():
        rows = np.isin(items, item)
        assert found[name]["AUC"] == roc_auc_score(labels[rows], predictions[rows])
        assert found[name]["logloss"] == pytest.approx(log_loss(labels[rows], predictions[rows]), abs=0)
    assert found["unseen"] | {"rows": 0, "items": 0, "AUC": None, "logloss": None} == found["unseen"]
    only = slices.of_predictions(items[items == 2], labels[items == 2], predictions[items == 2])["slices"]["rare"]
    assert only["AUC"] is None and only["logloss"] == pytest.approx(-np.log(predictions[items == 2]).mean())


def run_of(configs, **changes):
    changes = {"slice_by": "user", **changes}
    return prepare_run(load_experiment("DeepFM_shop", configs, overrides=changes), "unused")


def test_a_run_is_sliced_by_the_raw_train_values_of_its_items(configs):
    edit(configs / "dataset_config.yaml", "min_categr_count: 1", "min_categr_count: 28")
    run = run_of(configs)
    slices = FrequencySlices.from_run(run)
    raw = pl.read_csv(run.params["data_root"].replace("/data", "/raw/train.csv"))["user"].cast(str).value_counts()
    ids = vocabulary("user")
    # Users with fewer rows share the id of what is out of vocabulary, which is in no slice but unseen.
    expected = {ids[user]: count for user, count in raw.iter_rows() if count >= 28}
    assert 5 < len(expected) < 25 and dict(zip(slices.items.tolist(), slices.counts.tolist(), strict=True)) == expected
    assert ids["__OOV__"] in next(iter(make_loaders(run.feature_map, run.params, "train")[0]))["user"]
    unseen = slices.of_predictions(np.array([ids["__OOV__"], 0, 1]), np.array([0, 1, 1]), np.full(3, 0.5))["slices"][
        "unseen"
    ]
    assert (unseen["rows"], unseen["items"]) == (2, 2)


def test_slicing_is_a_report_and_leaves_a_runs_identity_alone(configs):
    plain, sliced = (load_experiment("DeepFM_shop", configs, overrides=own) for own in ({}, {"slice_by": "user"}))
    assert not sliced.changed and sliced.sha256 == plain.sha256


def test_a_model_is_asked_once_and_predicts_as_fuxictr_evaluates(configs):
    """In batches of Ray too: test_loader.py holds that they are the same dicts of the same tensors."""
    run = run_of(configs, batch_size=64)  # 150 rows: the last batch has 22
    model = build_model(run)
    rows = make_loaders(run.feature_map, run.params, "test")
    model.train()
    found = predict(model, ({**batch, "click": batch["click"]} for batch in rows), "user")
    test = pl.read_parquet(run.params["test_data"])
    assert not model.training and [values.dtype.kind for values in found] == ["i", "f", "f"]
    assert np.array_equal(found.item_ids, test["user"]) and np.array_equal(found.y_true, test["click"])
    assert np.array_equal(found.y_pred, model.predict(rows))
    assert model.evaluate(rows) == {"AUC": roc_auc_score(*found[1:]), "logloss": log_loss(*found[1:])}
    slices = FrequencySlices.from_run(run).of_model(model, rows)["slices"]
    assert sum(facts["rows"] for facts in slices.values()) == 150
    whole = sum(facts["rows"] * facts["logloss"] for facts in slices.values() if facts["rows"]) / 150
    assert whole == pytest.approx(log_loss(*found[1:]))


def test_train_counts_come_from_every_form_of_data(configs, tmp_path):
    run = run_of(configs)
    expected = FrequencySlices.from_run(run)
    table = pl.read_parquet(run.params["train_data"])
    columns = {name: np.array(table[name].to_list()) for name in table.columns}
    np.savez(tmp_path / "all.npz", **columns)
    (tmp_path / "parquet").mkdir()
    (tmp_path / "npz").mkdir()
    for part, rows in enumerate((slice(0, 500), slice(500, None))):
        table[rows].write_parquet(tmp_path / "parquet" / f"{part}.parquet")
        np.savez(tmp_path / "npz" / f"{part}.npz", **{name: values[rows] for name, values in columns.items()})
    for path in ("all.npz", "all", "parquet", "npz"):
        run.params["train_data"] = str(tmp_path / path)
        found = FrequencySlices.from_run(run)
        assert np.array_equal(found.items, expected.items) and np.array_equal(found.counts, expected.counts)


@pytest.mark.parametrize("damage", ["garbage.parquet", "garbage.npz", "without.npz", "without.parquet"])
def test_train_data_that_cannot_be_read_is_named(configs, damage):
    run = run_of(configs)
    if damage.startswith("garbage"):
        Path(damage).write_bytes(b"PAR1 or not")
    elif damage.endswith("npz"):
        np.savez(damage, click=np.zeros(3))
    else:
        pl.DataFrame({"click": [0.0]}).write_parquet(damage)
    run.params["train_data"] = damage
    with pytest.raises(UserError, match=f"column 'user' of '{damage}' cannot be read"):
        FrequencySlices.from_run(run)


def test_the_item_is_slice_by_or_the_field_configs_item_or_nothing(caplog):
    caplog.set_level(logging.INFO)
    feature_map = small_feature_map("DNN")
    Path("words.yaml").write_text("entities: {item: {id: item, text: [tags]}, user: {id: user}}\n", encoding="utf-8")
    Path("none.yaml").write_text("entities: {user: {id: user}}\n", encoding="utf-8")
    assert item_column({"slice_by": "user", "field_config": "words.yaml"}, feature_map) == "user"
    assert item_column({"slice_by": "group"}, feature_map) == "group"  # a meta column: models do not read it
    assert item_column({"slice_by": None, "field_config": "words.yaml"}, feature_map) == "item"
    assert item_column({"field_config": "none.yaml"}, feature_map) is None
    assert item_column({"slice_by": None, "field_config": None}, feature_map) is None
    assert "No metrics" not in caplog.text
    del feature_map.features["item"]
    assert item_column({"field_config": "words.yaml"}, feature_map) is None
    assert "the columns in use lack 'item'" in caplog.text


@pytest.mark.parametrize(
    ("slice_by", "message"),
    [
        ("itme", "unknown column 'itme' in slice_by; did you mean 'item'"),
        ("tags", "slice_by: column 'tags' is of type sequence; an item is one id a row, as in: user, item, group"),
        ("price", "slice_by: column 'price' is of type numeric"),
        ("image", "slice_by: column 'image' is of type embedding"),
    ],
)  # fmt: skip
def test_columns_that_cannot_be_the_item_are_named(slice_by, message):
    with pytest.raises(UserError, match=message):
        item_column({"slice_by": slice_by}, small_feature_map("DNN"))
    Path("words.yaml").write_text(f"entities: {{item: {{id: {slice_by}}}}}\n", encoding="utf-8")
    if slice_by != "itme":
        with pytest.raises(UserError, match=message.replace("slice_by", "entity 'item' of 'words.yaml'").split(";")[0]):
            item_column({"field_config": "words.yaml"}, small_feature_map("DNN"))


def test_networks_stand_side_by_side():
    slices = FrequencySlices("item", np.array([1, 2]), np.array([1, 9]))
    items, labels = np.array([1, 1, 2, 2, 3]), np.array([0, 1, 0, 1, 1])
    plain = slices.of_predictions(items, labels, np.array([0.2, 0.8, 0.9, 0.1, 0.5]))
    gain = slices.of_predictions(items, labels, np.array([0.2, 0.8, 0.1, 0.9, 0.5]))
    lines = [line.split() for line in slices_table({"plain": plain, "gain": gain}).splitlines()]
    assert lines == [
        ["AUC", "by", "item", "train", "rows", "rows", "plain", "gain"],
        ["unseen", "0", "1", "-", "-"],
        ["rare", "1", "2", "1.000000", "1.000000"],
        ["middle", "-", "0", "-", "-"],
        ["head", "9", "2", "0.000000", "1.000000"],
    ]
