"""Words come from the field config, values from the train split; prompts share their beginning."""

from pathlib import Path

import pandas as pd
import pytest
from fuxictr.features import FeatureMap

from fuxictr_llm.config import load_experiment
from fuxictr_llm.data.build import built_data
from fuxictr_llm.errors import UserError
from fuxictr_llm.semantics.catalog import FieldCatalog, FieldEntry, load_catalog
from fuxictr_llm.semantics.prompts import common_prefix, sample_prompts


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


def catalog_of(**values):
    return FieldCatalog("things", tuple(FieldEntry(name, f"the {name}", tuple(v)) for name, v in values.items()))


def test_the_prefix_holds_task_and_candidates_and_ends_where_the_value_begins():
    prefix = common_prefix(catalog_of(color=["red"], city=["Rome"]))
    assert prefix.startswith("Data: things.") and "Fields: the color; the city." in prefix and prefix.endswith("Value:")


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
