"""field_texts.json against a literal count of the train split, and processors that pickle as FuxiCTR's own."""

import json
import pickle
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pytest
from conftest import small_table
from fuxictr.preprocess import FeatureProcessor

from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data import field_words as field_texts
from fuxictr_llm.data.build import built_data
from fuxictr_llm.data.field_words import collecting


@pytest.fixture
def params(configs):
    return load_experiment("DeepFM_shop", configs).params


def texts(params):
    built_data(params)
    return json.loads((Path(params["data_root"]) / "shop" / "field_texts.json").read_text(encoding="utf-8"))


def column(name, kind, **more):
    return {"name": name, "active": True, "dtype": "str", "type": kind, **more}


def ranked(values, keep=lambda value: True):
    """Values in descending count, ties by value."""
    counts = Counter(value for value in values if keep(value))
    pairs = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return {"distinct": len(pairs), "values": [value for value, _ in pairs], "counts": [count for _, count in pairs]}


def test_values_are_those_of_train_in_descending_count(params):
    train = pd.read_csv(params["train_data"], dtype=str)
    found = texts(params)
    assert list(found) == ["color", "city", "user", "tags"]
    assert all(found[name] == ranked(train[name]) for name in ("color", "city", "user"))
    assert found["tags"] == ranked(tag for tags in train["tags"] for tag in tags.split("^"))


def test_rare_and_missing_values_are_left_out(params):
    table = small_table(300, 5)
    table.loc[:4, "color"] = ["violet", "violet", "beige", "__OOV__", "__PAD__"]
    table.loc[10:60, "color"] = ""
    table.to_csv(params["train_data"], index=False)
    params["min_categr_count"] = 2
    found = texts(params)["color"]
    counts = Counter(table["color"])
    assert found == ranked(table["color"], lambda value: value and counts[value] >= 2)
    assert "violet" in found["values"] and "beige" not in found["values"]


def test_no_value_of_valid_or_test_gets_in(params):
    for split in ("valid", "test"):
        pd.read_csv(params[f"{split}_data"], dtype=str).assign(color="purple").to_csv(
            params[f"{split}_data"], index=False
        )
    assert "purple" not in texts(params)["color"]["values"]


def test_many_values_are_thinned_evenly(params, monkeypatch):
    monkeypatch.setattr(field_texts, "MOST", 8)
    train = pd.read_csv(params["train_data"], dtype=str)
    whole, found = ranked(train["user"]), texts(params)["user"]
    assert found["distinct"] == whole["distinct"] == 30 and len(set(found["values"])) == 8
    assert found["values"][:4] == whole["values"][:4] and found["values"][-1] == whole["values"][-1]
    ranks = [whole["values"].index(value) for value in found["values"]]
    assert ranks == sorted(ranks) and max(np.diff(ranks)) <= 9
    assert found["counts"] == [whole["counts"][rank] for rank in ranks]


def test_fields_that_share_an_embedding_keep_their_own_values(params):
    train = pd.read_csv(params["train_data"], dtype=str)
    train["color"], train["city"] = train["color"].replace("red", "only a color"), train["color"]
    train.to_csv(params["train_data"], index=False)
    first, *rest = params["feature_cols"][0]["name"]
    assert [first, *rest] == ["color", "city", "user"]
    params["feature_cols"] = [column("color", "categorical"), column("city", "categorical", share_embedding="color")]
    found = texts(params)
    assert found["color"] == ranked(train["color"]) and found["city"] == ranked(train["city"])
    assert "only a color" not in found["city"]["values"] and "red" not in found["color"]["values"]


def test_numbers_have_quantiles_and_meta_columns_nothing(params):
    draw = np.random.default_rng(0)
    for split in ("train", "valid", "test"):
        table = pd.read_csv(params[f"{split}_data"], dtype=str)
        table["price"] = draw.lognormal(size=len(table)).round(4)
        table["flag"] = draw.integers(0, 2, len(table))
        table["void"] = ""
        table.loc[3, "price"] = np.nan
        table.to_csv(params[f"{split}_data"], index=False)
    number = {"dtype": "float"}  # 0.0 stands for what is missing, and is no value
    params["feature_cols"] = [
        column("price", "numeric", **number, normalizer="StandardScaler"),
        column("flag", "numeric", **number),
        column("void", "numeric", **number),
        column("color", "categorical"),
        column("user", "meta"),
    ]
    found = texts(params)
    prices = {split: pd.read_csv(params[f"{split}_data"])["price"] for split in ("train", "valid", "test")}
    price = prices["train"].dropna().sort_values().tolist()
    ranks = [round(i * (len(price) - 1) / 20) for i in range(21)]
    rows = sum(map(len, prices.values()))
    assert found["price"] == {"quantiles": [price[rank] for rank in ranks], "filled": {"0.0": [3, 0]}}
    assert found["flag"] == {"quantiles": [0.0, 1.0]}
    assert found["void"] == {"quantiles": [], "filled": {"0.0": [rows, 0]}}
    assert set(found) == {"price", "flag", "void", "color"}


def test_float_categories_are_texts_as_in_the_vocabulary(params):
    for split in ("train", "valid", "test"):
        table = pd.read_csv(params[f"{split}_data"], dtype=str)
        table.assign(user=table["user"].astype(int) / 10).to_csv(params[f"{split}_data"], index=False)
    params["feature_cols"] = [column("user", "categorical") | {"dtype": "float"}]
    vocabulary_file = Path(params["data_root"]) / "shop" / "feature_vocab.json"
    found = texts(params)["user"]["values"]
    assert set(found) | {"__PAD__", "__OOV__"} == set(json.loads(vocabulary_file.read_text())["user"])
    assert "0.3" in found and "2.0" in found


def test_the_pickle_is_fuxictrs_and_needs_nothing_of_ours(params, monkeypatch):
    built_data(params)
    path = Path(params["data_root"]) / "shop" / "feature_processor.pkl"
    assert b"fuxictr_llm" not in path.read_bytes()
    for name in [*sys.modules]:
        if name.partition(".")[0] == "fuxictr_llm":
            monkeypatch.setitem(sys.modules, name, None)  # as where it is not installed
    processor = pickle.loads(path.read_bytes())
    assert type(processor) is FeatureProcessor
    assert len(processor.feature_map.features) == 4


def test_a_processor_of_anyones_is_kept():
    class Mine(FeatureProcessor):
        def fit_numeric_col(self, col, stats_dict=None):
            super().fit_numeric_col(col, stats_dict)
            self.seen = col["name"]

    cls = collecting(Mine)
    assert cls is collecting(Mine) and issubclass(cls, Mine)
    spec = {"name": "price", "active": True, "dtype": "float", "type": "numeric"}
    processor = cls(
        feature_cols=[spec], label_col={"name": "click", "dtype": "float"}, dataset_id="shop", data_root="."
    )
    frame = pl.LazyFrame({"price": [1.0, 2.0], "click": [0.0, 1.0]})
    processor.save_pickle = lambda file: None  # a class of a function cannot be pickled
    processor.fit(frame)
    assert processor.seen == "price"
    assert json.loads(Path("shop/field_texts.json").read_text()) == {"price": {"quantiles": [1.0, 2.0]}}
