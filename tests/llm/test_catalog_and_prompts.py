"""Words come from the field config, values from the train split; prompts share their beginning."""

import json
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuxictr.features import FeatureMap

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.formats import read_yaml
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.config.sources import packaged_configs
from fuxictr_llm.data.build import built_data
from fuxictr_llm.data.field_words import read_field_config
from fuxictr_llm.llm.catalog import FieldCatalog, FieldEntry, load_catalog, mostly_words
from fuxictr_llm.model_zoo.LLaCTR.prompts import common_prefix, sample_prompts


@pytest.fixture
def shop(configs):
    params = load_experiment("DeepFM_shop", configs).params
    raw = params["test_data"]
    pd.read_csv(raw, dtype=str).assign(city="Testville").to_csv(raw, index=False)
    built_data(params)
    feature_map = FeatureMap("shop", f"{params['data_root']}/shop")
    feature_map.load(f"{params['data_root']}/shop/feature_map.json", params)
    return feature_map, Path(params["data_root"]) / "shop", params["field_config"]


def test_words_and_train_values(shop):
    catalog = load_catalog(*shop)
    assert catalog.about == "clicks in a shop"
    assert catalog.names == ["color", "city", "user", "tags"]
    by_name = {field.name: field for field in catalog.fields}
    assert by_name["city"].text == "city of the shop"
    assert set(by_name["city"].values) == {"Rome", "Oslo", "Bern", "Cairo", "Lima", "Malmö"}  # no Testville: test only
    assert set(by_name["tags"].values) == {"new", "old", "on sale"}  # sequence elements, in words
    assert len(by_name["user"].values) == 30


def test_a_field_without_words_falls_back_to_its_name(shop, tmp_path, caplog):
    (tmp_path / "few.yaml").write_text("fields: {color: color}")
    catalog = load_catalog(shop[0], shop[1], str(tmp_path / "few.yaml"))
    assert [field.text for field in catalog.fields] == ["color", "city", "user", "tags"]
    assert "no words for field 'city'" in caplog.text and "no words for field 'color'" not in caplog.text
    assert [field.text for field in load_catalog(shop[0], shop[1], None).fields] == ["color", "city", "user", "tags"]


def test_words_for_coded_values_are_found_and_those_for_others_named(shop, tmp_path, caplog):
    (tmp_path / "coded.yaml").write_text(
        "fields: {color: c, city: c2, user: u, tags: t}\nvalues: {user: {1: Ann, 99: Zoe}}"
    )
    by_name = {field.name: field for field in load_catalog(shop[0], shop[1], str(tmp_path / "coded.yaml")).fields}
    assert "Ann" in by_name["user"].values and "1" not in by_name["user"].values
    assert "values of 'user' that train does not have: 99" in caplog.text


def test_fields_that_share_a_vocabulary_keep_their_own_values(configs, tmp_path):
    path = configs / "dataset_config.yaml"
    path.write_text(path.read_text().replace("max_len: 3}", "max_len: 3, share_embedding: color}"))
    params = load_experiment("DeepFM_shop", configs).params
    built_data(params)
    feature_map = FeatureMap("shop", f"{params['data_root']}/shop")
    feature_map.load(f"{params['data_root']}/shop/feature_map.json", params)
    catalog = load_catalog(feature_map, Path(params["data_root"]) / "shop", None)
    by_name = {field.name: set(field.values) for field in catalog.fields}
    assert by_name["tags"] == {"new", "old", "hot"}
    assert by_name["color"] == {"red", "green", "blue", "black", "white", "grey"}


def test_a_history_is_told_in_the_words_of_its_items(tmp_path):
    item = {"type": "categorical", "vocab_size": 4}
    specs = {"item": item, "history": {**item, "type": "sequence", "share_embedding": "item"}}
    texts = {name: {"distinct": 2, "values": ["1", "2"], "counts": [2, 1]} for name in specs}
    feature_map, _ = built_folder(tmp_path, specs, {}, {name: {"1": 1, "2": 2} for name in specs}, texts)
    (tmp_path / "words.yaml").write_text("values: {item: {1: Heat, 2: Alien}, history: {2: Aliens}}")
    by_name = {
        field.name: field.values for field in load_catalog(feature_map, tmp_path, str(tmp_path / "words.yaml")).fields
    }
    assert by_name == {"item": ("Heat", "Alien"), "history": ("Heat", "Aliens")}


def test_wrong_field_configs_are_named(shop, tmp_path):
    with pytest.raises(UserError, match="unknown field config 'movielens100'; did you mean 'movielens100k'"):
        load_catalog(shop[0], shop[1], "movielens100")
    (tmp_path / "wrong.yaml").write_text("fields: {colour: color}")
    with pytest.raises(UserError, match="has words for 'colour'; did you mean 'color'"):
        load_catalog(shop[0], shop[1], str(tmp_path / "wrong.yaml"))
    (tmp_path / "list.yaml").write_text("values: {color: [red]}")
    with pytest.raises(UserError, match="'values' fields to value: words"):
        load_catalog(shop[0], shop[1], str(tmp_path / "list.yaml"))
    (tmp_path / "keys.yaml").write_text("words: {}")
    with pytest.raises(UserError, match="unknown key 'words'; known: about, fields, values"):
        load_catalog(shop[0], shop[1], str(tmp_path / "keys.yaml"))


def test_two_fields_with_the_same_words_are_named(shop, tmp_path):
    (tmp_path / "twins.yaml").write_text("fields: {color: name of a thing, city: name of a thing}")
    with pytest.raises(UserError, match="fields 'color' and 'city' have the same words 'name of a thing'"):
        load_catalog(shop[0], shop[1], str(tmp_path / "twins.yaml"))


def built_folder(tmp_path, specs, columns, vocabulary, texts=None):
    """A built data set with the columns as train split."""
    (tmp_path / "feature_map.json").write_text(json.dumps({"features": [{name: spec} for name, spec in specs.items()]}))
    (tmp_path / "feature_vocab.json").write_text(json.dumps(vocabulary))
    if texts is not None:
        (tmp_path / "field_texts.json").write_text(json.dumps(texts))
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    return SimpleNamespace(features=specs), tmp_path


def test_numbers_give_their_quantiles_and_neither_meta_nor_embeddings_values(tmp_path):
    specs = {
        "price": {"type": "numeric"},
        "share": {"type": "numeric"},
        "image": {"type": "embedding", "pretrain_dim": 2},
        "group": {"type": "meta"},
    }
    columns = {"price": [5.0, None, *range(1000, 1100)], "share": [0.123456] * 102, "image": [[1.0, 2.0]] * 102}
    folder = built_folder(tmp_path, specs, {**columns, "group": [7] * 102, "click": [1.0] * 102}, {})
    catalog = load_catalog(*folder, None)
    price, share, image = catalog.fields
    assert catalog.names == ["price", "share", "image"] and image.values == ()
    assert share.values == ("0.1235",)
    assert price.values[0] == "5"
    assert price.values[-1] == "1099"
    assert len(price.values) == 21 and price.values[10] in ("1048", "1049", "1050")
    texts = {"price": {"quantiles": [0.5, 0.5, 1e6, 2e6]}}
    folder = built_folder(tmp_path, specs, {**columns, "group": [7] * 102}, {}, texts)
    assert load_catalog(*folder, None).fields[0].values == ("0.5", "1000000", "2000000")


def test_texts_noted_while_building_come_before_the_vocabulary(tmp_path):
    specs = {"item": {"type": "categorical", "vocab_size": 5}}
    vocabulary = {"item": {"a": 1, "b": 2, "c": 3, "__PAD__": 0, "__OOV__": 4}}
    folder = built_folder(tmp_path, specs, {"item": [1, 2, 3]}, vocabulary)
    assert load_catalog(*folder, None).fields[0].values == ("a", "b", "c")
    texts = {"item": {"distinct": 3, "values": ["b", "a"], "counts": [9, 1]}}
    folder = built_folder(tmp_path, specs, {"item": [1, 2, 3]}, vocabulary, texts)
    assert load_catalog(*folder, None).fields[0].values == ("b", "a")


def test_words_for_codes_that_are_floats(tmp_path):
    specs = {"gender": {"type": "categorical", "vocab_size": 4}}
    folder = built_folder(tmp_path, specs, {"gender": [1, 2]}, {"gender": {"1.0": 1, "2.0": 2, "__OOV__": 3}})
    words = tmp_path / "words.yaml"
    words.write_text("values: {gender: {1: male, 2: female}}")
    assert load_catalog(*folder, str(words)).fields[0].values == ("male", "female")


def catalog_of(**values):
    return FieldCatalog("things", tuple(FieldEntry(name, f"the {name}", tuple(v)) for name, v in values.items()))


def test_the_prefix_holds_task_and_candidates_and_ends_where_the_value_begins():
    prefix = common_prefix(catalog_of(color=["red"], city=["Rome"]))
    assert prefix.startswith("Data: things.")
    assert "Fields: the color; the city." in prefix
    assert prefix.endswith("Value:")


def test_prompts_are_sampled_distinct_seeded_and_split():
    catalog = catalog_of(many=[str(i) for i in range(100)], few=["7", "b", "7"], none=[])
    tuning, held_out = sample_prompts(catalog, per_field=10, held_out=0.2, seed=1)
    assert (len(tuning), len(held_out)) == (8 + 2, 2)
    assert len({(prompt.value, prompt.field) for prompt in tuning + held_out}) == 12
    assert {prompt.value for prompt in tuning if prompt.field == 1} == {"7", "b"}
    assert (tuning, held_out) == sample_prompts(catalog, per_field=10, held_out=0.2, seed=1)
    assert tuning != sample_prompts(catalog, per_field=10, held_out=0.2, seed=2)[0]


def test_a_value_of_two_fields_is_kept_for_both():
    tuning, _ = sample_prompts(catalog_of(user=["7"], item=["7"]), per_field=5, held_out=0.5, seed=0)
    assert sorted((prompt.value, prompt.field) for prompt in tuning) == [("7", 0), ("7", 1)]


def test_frequent_and_rare_values_are_both_sampled():
    catalog = catalog_of(item=[str(rank) for rank in range(1000)])
    ranks = [int(prompt.value) for prompt in sample_prompts(catalog, per_field=20, held_out=0, seed=3)[0]]
    assert len(set(ranks)) == 20 and sum(rank < 100 for rank in ranks) == 10
    rare = [rank for rank in ranks if rank >= 100]
    assert min(rare) < 500 < max(rare)
    assert len(sample_prompts(catalog, per_field=999, held_out=0, seed=3)[0]) == 999
    assert len(sample_prompts(catalog, per_field=1, held_out=0, seed=3)[0]) == 1


def test_words_are_told_from_ids_and_hashes():
    assert mostly_words(["Toy Story (1995)", "Heat", "42"]) and mostly_words(["Malmö", "Århus"])
    assert not mostly_words(["1", "24", "T8H1N"]) and not mostly_words([])
    draw = np.random.default_rng(0)
    assert not mostly_words(["".join(draw.choice(list("0123456789abcdef"), 8)) for _ in range(500)])


def test_packaged_entities_are_of_columns_that_have_words():
    entries = {}
    for path in sorted((packaged_configs() / "field_config").glob("*.yaml")):
        entries |= read_yaml(path)
    with_entities = {name: entry for name, entry in entries.items() if "entities" in entry}
    assert {"movielens100k", "movielens1m", "amazon_game", "kkbox_x1", "taobaoad_x1"} <= with_entities.keys()
    for name, entry in with_entities.items():
        assert read_field_config(name)["entities"] == entry["entities"]
        text = [column for entity in entry["entities"].values() for column in entity["text"]]
        assert len(text) == len(set(text)) and set(text) <= entry["fields"].keys(), name
        assert not set(text) & {entity.get("id") for entity in entry["entities"].values()}


def test_columns_that_the_rows_lack_have_the_values_of_their_vocabulary(tmp_path):
    """Of long sequences, the items' columns stand in a file of their own."""
    item = {"type": "categorical", "padding_idx": 0, "vocab_size": 4}
    features = {"item_id": item, "bought_with": item | {"share_embedding": "item_id"}, "price": {"type": "numeric"}}
    feature_map = FeatureMap("views", "")
    feature_map.features = OrderedDict(features)
    described = {"dataset_id": "views", "labels": ["click"]}
    described["features"] = [{name: spec} for name, spec in features.items()]
    (tmp_path / "feature_map.json").write_text(json.dumps(described))
    vocabulary = {"__PAD__": 0, "shirt": 1, "hat": 2, "__OOV__": 3}
    (tmp_path / "feature_vocab.json").write_text(json.dumps(dict.fromkeys(("item_id", "bought_with"), vocabulary)))
    pd.DataFrame({"user_index": [0], "click": [1.0]}).to_parquet(tmp_path / "train.parquet")
    catalog = load_catalog(feature_map, tmp_path, None)
    assert [field.values for field in catalog.fields] == [("shirt", "hat"), ("shirt", "hat"), ()]
