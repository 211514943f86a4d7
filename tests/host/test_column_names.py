"""Names of columns that FuxiCTR cannot take are named before anything is built; all others work."""

import pandas as pd
import pytest
from torch import nn

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.experiment.preparation import prepare_data
from fuxictr_llm.experiment.run import run_experiment
from fuxictr_llm.host.columns import check_declared, check_embedded
from support import edit

ATTRIBUTES = [name for name in dir(nn.ModuleDict()) if not name.startswith("__")]


def renamed(configs, tmp_path, name):
    """The shop with its column `city` called otherwise."""
    for split in ("train", "valid", "test"):
        path = tmp_path / "raw" / f"{split}.csv"
        pd.read_csv(path, dtype=str).rename(columns={"city": name}).to_csv(path, index=False)
    edit(configs / "dataset_config.yaml", "[color, city, user]", f"[color, {name!r}, user]")
    edit(tmp_path / "words.yaml", "city:", f"{name!r}:")


def declared(*names, kind="categorical", label="click", **params):
    columns = [{"name": name, "active": True, "dtype": "str", "type": kind} for name in names]
    return {"feature_cols": columns, "label_col": {"name": label, "dtype": "float"}, **params}


@pytest.mark.parametrize("name", ["type", "items", "values", "forward", "a.b", "training", "keys"])
@pytest.mark.parametrize("expid", ["DeepFM_shop", "DeepFM_LLaCTR_shop", "DeepFM_ELEC_shop"])
def test_a_name_that_no_embedding_can_have_is_named_when_the_config_is_read(configs, tmp_path, name, expid):
    renamed(configs, tmp_path, name)
    with pytest.raises(
        UserError, match=f"a column cannot be called {name!r}: embeddings are kept by name, and .* renam"
    ):
        load_experiment(expid, configs)


def test_every_attribute_of_torchs_dict_of_modules_is_found():
    assert {"items", "values", "keys", "pop", "update", "train", "eval", "to", "type", "_modules"} <= set(ATTRIBUTES)
    for name in ATTRIBUTES:
        with pytest.raises(UserError, match="cannot be called"):
            check_declared(declared("color", name))


@pytest.mark.parametrize("name", ["", " ", "*", "^a.*$"])
def test_an_empty_name_and_a_pattern_are_named(name):
    with pytest.raises(UserError, match="a column cannot be called .*; rename it in the raw files$"):
        check_declared(declared("color", name))


@pytest.mark.parametrize("name", ["Größe", "a b", "a/b", "a-b", "1", "class", "a:b", "^a", "name", "features", "Type"])
def test_other_names_work(configs, tmp_path, name):
    renamed(configs, tmp_path, name)
    metrics = run_experiment(load_experiment("DeepFM_shop", configs, overrides={"epochs": 1})).record["metrics"]
    assert 0 < metrics["test"]["AUC"] < 1


def test_what_no_model_embeds_may_have_any_name():
    check_declared(declared("items", "a.b", kind="meta"))
    check_declared(declared("color", label="type"))
    check_declared(declared("items", "color", use_features=["color"]))
    columns = declared("items", "color")
    columns["feature_cols"][0]["active"] = False
    check_declared(columns)


def test_a_name_that_stands_twice_is_named():
    with pytest.raises(UserError, match="'color' is a column more than once"):
        check_declared(declared("color", "city", "color"))
    with pytest.raises(UserError, match="'click' is a label and a feature more than once"):
        check_declared(declared("color", "click"))
    columns = declared("color", "color")
    columns["feature_cols"][0]["active"] = False
    check_declared(columns)


def test_columns_that_methods_add_are_named_where_there_is_one():
    check_declared(declared("llm_vector"))
    for name in ("llm_vector", "llm_vectors_0", "llm_text_12"):
        with pytest.raises(UserError, match="a method adds a column of that name"):
            check_declared(declared(name, method="ELEC"))


def test_a_data_set_that_is_built_already_is_checked_too(configs):
    run = prepare_data(load_experiment("DeepFM_shop", configs), "unused")
    check_embedded(run.feature_map.features, run.params)
    with pytest.raises(UserError, match="'a.b'"):
        check_embedded([*run.feature_map.features, "a.b"], run.params)


def test_the_way_out_works(configs, tmp_path):
    renamed(configs, tmp_path, "items")
    edit(configs / "dataset_config.yaml", "[color, 'items', user]", "[color, user]")
    column = "    - {name: items_, active: true, dtype: str, type: categorical, preprocess: copy_from(items)}\n"
    edit(configs / "dataset_config.yaml", "    label_col:", f"{column}    label_col:")
    edit(tmp_path / "words.yaml", "'items':", "items_:")
    result = run_experiment(load_experiment("DeepFM_shop", configs, overrides={"epochs": 1}))
    assert 0 < result.record["metrics"]["test"]["AUC"] < 1
