"""Keys inside columns: misspelt, of another type of column, of older versions of FuxiCTR, with wrong values."""

import re
import textwrap
from pathlib import Path
from typing import get_type_hints

import fuxictr
import pytest
import yaml

from fuxictr_llm.common.checks import check_value
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config import column_keys
from fuxictr_llm.config.keys import Column, DatasetKeys, ModelKeys
from fuxictr_llm.config.resolve import load_experiment

COLOR = {"name": ["color", "city"], "active": True, "dtype": "str", "type": "categorical"}
TAGS = {"name": "tags", "active": True, "dtype": "str", "type": "sequence"}
PRICE = {"name": "price", "active": True, "dtype": "float", "type": "numeric"}
GROUP = {"name": "user", "active": True, "dtype": "int", "type": "meta"}
LABEL = {"name": "click", "dtype": "float"}


def load(configs, cols, **overrides):
    return load_experiment("DeepFM_shop", configs, overrides={"feature_cols": cols, **overrides})


def check(**settings):
    """As a config of ours is checked."""
    settings = {"feature_cols": [COLOR, PRICE, TAGS], "label_col": LABEL, **settings}
    hints = get_type_hints(ModelKeys, include_extras=True) | get_type_hints(DatasetKeys, include_extras=True)
    for key, value in settings.items():
        check_value(key, value, hints[key])
    return column_keys.check_columns(settings, "here", strict=settings)


@pytest.mark.parametrize(
    ("col", "key", "meant"),
    [
        (TAGS, "spliter", "splitter"),
        (TAGS, "maxlen", "max_len"),
        (TAGS, "paddding", "padding"),
        (TAGS, "shared_embedding", "share_embedding"),
        (TAGS, "feature_encodr", "feature_encoder"),
        (COLOR, "min_categ_count", "min_categr_count"),
        (COLOR, "embeding_dim", "embedding_dim"),
        (COLOR, "filll_na", "fill_na"),
        (COLOR, "Source", "source"),
        (COLOR, "pretrained_embedding", "pretrained_emb"),
        (COLOR, "freezed_emb", "freeze_emb"),
        (PRICE, "normaliser", "normalizer"),
        (PRICE, "preproces", "preprocess"),
        (GROUP, "re_map", "remap"),
    ],
)
def test_a_misspelt_key_of_a_column_names_the_nearest(col, key, meant):
    message = f"^key '{key}' in feature_cols of .*{col['name'][-1]}.* has no effect; did you mean '{meant}'"
    with pytest.raises(UserError, match=message):
        check(feature_cols=[{**COLOR, "name": "first"}, {**col, key: 1}])


@pytest.mark.parametrize(
    ("col", "key", "value", "message"),
    [
        (COLOR, "splitter", "|", "has no effect on type categorical; FuxiCTR reads it of columns of type sequence"),
        (COLOR, "normalizer", "MinMaxScaler", "on type categorical; FuxiCTR reads it of columns of type numeric"),
        (PRICE, "min_categr_count", 2, "on type numeric; FuxiCTR reads it of columns of type categorical, sequence"),
        (PRICE, "share_embedding", "color", "has no effect on type numeric"),
        (GROUP, "max_len", 3, "has no effect on type meta"),
        (COLOR, "no such", 1, "has no effect; known: active, category_processor, .*"),
        (COLOR, 7, 1, "key 7 in feature_cols of 'color', 'city' has no effect; known"),
        (COLOR, "na_value", "", "FuxiCTR calls it 'fill_na' now"),
        (TAGS, "encoder", "MaskedSumPooling", "FuxiCTR calls it 'feature_encoder' now"),
        (TAGS, "embedding_callback", None, "FuxiCTR calls it 'feature_encoder' now"),
        (TAGS, "max_len", -1, r"feature_cols\[0\]' is .*'max_len' Input should be greater than or equal to 0"),
        (TAGS, "max_len", "5", r"'max_len' Input should be a valid integer"),
        (TAGS, "splitter", "", r"'splitter' String should have at least 1 character"),
        (TAGS, "splitter", 1, r"'splitter' Input should be a valid string"),
        (TAGS, "padding", "left", r"'padding' Input should be 'pre' or 'post'"),
        (COLOR, "min_categr_count", 0, r"'min_categr_count' Input should be greater than or equal to 1"),
        (COLOR, "min_categr_count", 1.5, r"'min_categr_count' Input should be a valid integer"),
        (COLOR, "share_embedding", ["color"], r"'share_embedding' Input should be a valid string"),
        (COLOR, "remap", "no", r"'remap' Input should be a valid boolean"),
        (COLOR, "name", [], r"'name'"),
        (COLOR, "embedding_dim", 0, r"'embedding_dim' Input should be greater than or equal to 1"),
        (PRICE, "normalizer", "standard", r"'normalizer' Input should be 'StandardScaler' or 'MinMaxScaler'"),
        (PRICE, "fill_na", [0], r"'fill_na' Input should be"),
        (PRICE, "fill_na", "", "fill_na in feature_cols of 'price' is '' where dtype is float; it must be a number"),
        (GROUP, "fill_na", 0.5, "is 0.5 where dtype is int; it must be a whole number"),
        (COLOR, "fill_na", 0, "is 0 where dtype is str; it must be a text, as in fill_na: '0'"),
        (PRICE, "fill_na", True, "'fill_na' Input should be a valid (string|number)"),
    ],
)
def test_a_key_that_does_not_fit_its_column_is_named(col, key, value, message):
    with pytest.raises(UserError, match=message):
        check(feature_cols=[{**col, key: value}])


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("label_col", {**LABEL, "dtyp": 1}, "key 'dtyp' in label_col of 'click' has no effect; did you mean 'dtype'"),
        (
            "label_col",
            [LABEL, {**LABEL, "name": "b", "na_value": 0}],
            "'na_value' in label_col of 'b' .* 'fill_na' now",
        ),
        ("label_col", {**LABEL, "active": False}, "'active' Input should be True"),
        ("label_col", {**LABEL, "name": "color"}, "column 'color' stands twice in feature_cols and label_col"),
        ("feature_specs", [{"name": "tags", "feature_encodr": None}], "feature_specs of 'tags' .* 'feature_encoder'"),
        ("feature_specs", [{"name": "tags", "encoder": None}], "calls it 'feature_encoder' now"),
        (
            "feature_specs",
            [{"name": "tags", "max_len": 2}],
            "decides how the data set is built; give it in feature_cols",
        ),
        ("feature_specs", [{"name": "color", "min_categr_count": 2}], "give it in feature_cols"),
        (
            "feature_specs",
            [{"name": "price", "pretrained_emb": "a.npz"}],
            "on type numeric; FuxiCTR reads it of columns",
        ),
        ("feature_specs", [{"name": "color", "type": "text"}], "'type' Input should be 'numeric'"),
        ("feature_cols", [COLOR, {**COLOR, "name": "city"}], "column 'city' stands twice"),
    ],
)
def test_labels_and_feature_specs_are_checked_alike(setting, value, message):
    with pytest.raises(UserError, match=message):
        check(**{setting: value})


def test_a_config_of_ours_with_a_misspelt_key_is_an_error(configs):
    path = configs / "dataset_config.yaml"
    path.write_text(path.read_text().replace("splitter: ^", "spliter: '|'"))
    message = r"^key 'spliter' in feature_cols of 'tags' .* did you mean 'splitter'\? \(expid 'DeepFM_shop'\)$"
    with pytest.raises(UserError, match=message):
        load_experiment("DeepFM_shop", configs)
    printed = load_experiment("DeepFM_shop", configs, overrides={"feature_cols": [TAGS]}).to_yaml()
    (configs.parent / "printed.yaml").write_text(printed.replace("dtype: str", "dtype: str, maxlen: 3", 1))
    with pytest.raises(UserError, match="'maxlen' .* did you mean 'max_len'"):
        load_experiment("DeepFM_shop", configs.parent / "printed.yaml")


def test_what_fits_is_taken_as_it_is(configs):
    cols = [
        {**COLOR, "fill_na": "0", "min_categr_count": 2, "embedding_dim": 4, "source": "user", "remap": True},
        {**TAGS, "splitter": "|", "max_len": 0, "padding": "pre", "share_embedding": "color", "feature_encoder": None},
        {**PRICE, "normalizer": "MinMaxScaler", "fill_na": 0, "preprocess": "copy_from(color)"},
        {**PRICE, "name": "city", "active": False},  # a name may stand again where it is not active
        {**GROUP, "fill_na": None},
    ]
    specs = [{"name": ["tags", "price"], "freeze_emb": False, "pretrain_dim": 3}, {"name": "color", "type": "meta"}]
    found = load(configs, cols, label_col={**LABEL, "active": True}, feature_specs=specs).params
    assert (found["feature_cols"], found["feature_specs"]) == (cols, specs)


def test_a_plain_fuxictr_directory_warns_and_leaves_the_key_out(configs, tmp_path, caplog):
    plain = tmp_path / "plain"
    load_experiment("DeepFM_shop", configs).write_directory(plain)
    clean = load_experiment("DeepFM_shop", plain)
    text = (plain / "dataset_config.yaml").read_text()
    text = text.replace("splitter: ^", "splitter: ^, spliter: '|', na_value: ''").replace(
        "dtype: float", "dtype: float, a: 1"
    )
    (plain / "dataset_config.yaml").write_text(text)
    assert "spliter" in text and "na_value" in text
    found = load_experiment("DeepFM_shop", plain)
    assert "key 'spliter' in feature_cols of 'tags' has no effect; did you mean 'splitter'?" in caplog.text
    assert "key 'na_value' in feature_cols of 'tags' has no effect; FuxiCTR calls it 'fill_na' now" in caplog.text
    assert "key 'a' in label_col of 'click' has no effect" in caplog.text
    assert found.params == clean.params
    assert not found.changed
    assert found.sha256 == clean.sha256
    (tmp_path / "printed.yaml").write_text(found.to_yaml())
    assert load_experiment("DeepFM_shop", tmp_path / "printed.yaml").params == clean.params
    with pytest.raises(UserError, match="'spliter'"):  # what --set gives is meant
        load_experiment("DeepFM_shop", plain, overrides={"feature_cols": [{**TAGS, "spliter": "|"}]})


def test_a_processor_of_anyones_may_read_more_keys(configs, tmp_path, caplog):
    (tmp_path / "mine.py").write_text("from fuxictr.preprocess import FeatureProcessor as Mine\n")
    cols = [{**TAGS, "spliter": "|"}]
    found = load(configs, cols, feature_processor=f"{tmp_path}/mine.py:Mine")
    assert found.params["feature_cols"] == cols and "'spliter' in feature_cols of 'tags'" in caplog.text
    with pytest.raises(UserError, match="'spliter'"):  # FuxiCTR's own read what they read
        load(configs, cols, feature_processor="criteo")


def test_a_model_of_anyones_may_read_more_of_feature_specs(configs, tmp_path, caplog):
    (tmp_path / "net.py").write_text(
        "from fuxictr_llm.model_zoo.backbones.DeepFM import DeepFM\nclass Net(DeepFM):\n    pass\n"
    )
    with (configs / "model_config.yaml").open("a") as file:
        file.write(f"Net: {{model: '{tmp_path}/net.py:Net'}}\n")
    specs = [{"name": "tags", "hashes": 2}]
    found = load_experiment("Net_shop", configs, overrides={"feature_specs": specs})
    assert found.params["feature_specs"] == specs and "'hashes' in feature_specs of 'tags'" in caplog.text


def test_renamed_keys_of_models_are_named(configs):
    for key, now in (("patience", "early_stop_patience"), ("every_x_epochs", "eval_steps"), ("workers", "num_workers")):
        with pytest.raises(UserError, match=f"unknown config key '{key}' .*; FuxiCTR calls it '{now}' now"):
            load_experiment("DeepFM_shop", configs, overrides={key: 1})


def test_the_known_keys_are_those_that_fuxictr_reads():
    """Read off the source of the installed FuxiCTR, so that a new release shows what it added."""
    folder = Path(fuxictr.__file__).parent

    def read(name: str, variable: str) -> set[str]:
        found = re.findall(rf"""\b{variable}(?:\.get\(|\[)["'](\w+)["']""", (folder / name).read_text(encoding="utf-8"))
        return {
            *found,
            *re.findall(rf"""["'](\w+)["'] (?:not )?in {variable}\b""", (folder / name).read_text(encoding="utf-8")),
        }

    of_columns = read("preprocess/feature_processor.py", r"(?:col|c|feat|feature_spec\[c\])")
    assert of_columns == {*Column.__annotations__}
    assert of_columns == set().union(*column_keys.OF_TYPE.values())
    of_specs = read("features.py", "feature_spec")
    for file in ("feature_embedding", "pretrained_embedding"):
        of_specs |= read(f"pytorch/layers/embeddings/{file}.py", "feature_spec")
    assert of_specs - {"max_len"} | {"name"} == column_keys.OF_SPEC


def test_barss_own_data_configs_are_told_their_old_keys(tmp_path, configs, caplog):
    """The form of BARS's Criteo config, as FuxiCTR 1 read it."""
    plain = tmp_path / "plain"
    load_experiment("DeepFM_shop", configs).write_directory(plain)
    old = textwrap.dedent("""
        feature_cols:
        - {active: true, dtype: str, name: [color, city], type: categorical, na_value: '', min_categr_count: 1}
        - {active: true, dtype: str, encoder: MaskedSumPooling, max_len: 3, name: tags, splitter: ^, type: sequence}
        """)
    path = plain / "dataset_config.yaml"
    entry = yaml.safe_load(path.read_text())
    entry["shop"] |= yaml.safe_load(old)
    path.write_text(yaml.safe_dump(entry))
    load_experiment("DeepFM_shop", plain)
    assert "'fill_na' now" in caplog.text and "'feature_encoder' now" in caplog.text
