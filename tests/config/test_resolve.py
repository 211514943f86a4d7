"""Resolution order, strictness, identity, and FuxiCTR's own forms of configs."""

import copy

import pytest
from fuxictr.utils import load_config

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.formats import parse_yaml
from fuxictr_llm.config.resolve import load_experiment, parse_overrides
from fuxictr_llm.config.sources import read_source
from support import edit


def test_later_layers_win(configs):
    (configs / "model_config.yaml").write_text(
        "Base: {seed: 1, batch_size: 1, learning_rate: 0.1}\n"
        "DeepFM: {learning_rate: 0.2, net_dropout: 0.2, embedding_dim: 2, batch_size: 2}\n"
        "DeepFM_shop: {net_dropout: 0.3, embedding_dim: 3, batch_size: 3}\n"
        "DeepFM_LLaCTR_shop: {min_categr_count: 9, lambda_fre: 0.6, max_gradient_norm: 6}\n"
    )
    (configs / "method_config" / "LLaCTR.yaml").write_text(
        "LLaCTR: {embedding_dim: 4, batch_size: 4, lambda_fie: 0.4, lambda_fre: 0.4}\n"
        "LLaCTR_shop: {batch_size: 5, lambda_fre: 0.5}\n"
    )
    found = load_experiment("DeepFM_LLaCTR_shop", configs, overrides={"max_gradient_norm": 7.0}).params
    assert (found["seed"], found["epochs"]) == (1, 100)  # Base stands on the packaged one
    assert found["learning_rate"] == 0.2  # backbone over Base
    assert found["net_dropout"] == 0.3  # Backbone_dataset over backbone
    assert (found["embedding_dim"], found["lambda_fie"]) == (4, 0.4)  # method over Backbone_dataset
    assert found["batch_size"] == 5  # Method_dataset over method
    assert found["lambda_fre"] == 0.6  # exact expid over Method_dataset
    assert found["min_categr_count"] == 1  # the data set's keys win over the expid
    assert found["max_gradient_norm"] == 7.0  # --set wins over all
    assert (found["model"], found["method"], found["dataset_id"]) == ("DeepFM", "LLaCTR", "shop")
    assert found["debug_mode"] is False


def test_what_is_done_to_the_settings_of_one_experiment_no_other_sees(configs):
    for config, expid in ((configs, "DeepFM_shop"), (None, "DeepFM_movielens100k")):
        expected = copy.deepcopy(read_source(expid, config).params)
        params = read_source(expid, config).params
        params["hidden_units"].append(1)
        params["feature_cols"][0]["name"] = "changed"
        params["label_col"]["name"] = "changed"
        assert read_source(expid, config).params == expected != params


def test_any_combination_runs_without_being_written_down(configs):
    found = load_experiment("FinalMLP_LLaCTR_shop", configs).params
    assert found["mlp1_hidden_units"] == [400, 400, 400] and found["lambda_fre"] == 0.05


def test_aliases_name_the_same_experiment():
    assert load_experiment("DNN_movielens") == load_experiment("DNN_movielens100k")


def test_a_label_with_model_and_dataset_is_only_a_label(configs):
    (configs / "model_config.yaml").write_text(
        (configs / "model_config.yaml").read_text() + "tuned_1: {model: DNN, dataset_id: shop, hidden_units: [5]}\n"
    )
    found = load_experiment("tuned_1", configs)
    assert (found.expid, found.params["model"], found.params["hidden_units"]) == ("tuned_1", "DNN", [5])


@pytest.mark.parametrize(
    ("expid", "message"),
    [
        ("DeepFN_movielens100k", "unknown backbone 'DeepFN' in expid 'DeepFN_movielens100k'; did you mean 'DeepFM'?"),
        (
            "DeepFM_LLaCRT_movielens100k",
            "unknown method 'LLaCRT' in expid 'DeepFM_LLaCRT_movielens100k'; did you mean .LLaCTR.\\? known: CTRL, ELEC, KAR",
        ),
        ("DeepFM_LLaCTR_movielens100", "unknown data set 'movielens100' .* did you mean 'movielens100k'?"),
        ("DeepFM_movelens100k", "unknown data set 'movelens100k' .* did you mean 'movielens100k'?"),
        ("DeepFM", "^expid 'DeepFM' names no data set; for example DeepFM_movielens100k$"),
        ("DeepFM_LLaCTR_", "^expid 'DeepFM_LLaCTR_' names no data set; for example DeepFM_LLaCTR_movielens100k$"),
        ("bookcrossing", r"^expid 'bookcrossing' names neither a backbone nor a data set: an expid is {Backbone}\["),
        ("movielens100k", "'movielens100k' names a data set alone: .*; for example DeepFM_movielens100k$"),
        ("deepfm", "names neither a backbone nor a data set: .* did you mean 'DeepFM'?"),
        ("DeepFM_bookcrossing", "unknown data set 'bookcrossing' in expid 'DeepFM_bookcrossing'"),
    ],
)
def test_unknown_parts_of_an_expid_name_the_nearest(expid, message):
    with pytest.raises(UserError, match=message):
        load_experiment(expid)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("learnin_rate", 0.1, "unknown config key 'learnin_rate' .* did you mean 'learning_rate'"),
        ("learning_rate", -1, "'learning_rate' is -1 .*: input should be greater than 0"),
        ("batch_size", "many", "'batch_size' is 'many' .*: input should be a valid integer"),
        ("batch_size", True, "'batch_size' is True"),
        ("hidden_units", ["a"], "'hidden_units\\[0\\]' is 'a'"),
        ("lambda_fre", "a lot", "'lambda_fre' is 'a lot'"),
        ("data_loader", "disk", "'data_loader' is 'disk' .*: input should be 'auto', 'memory', 'blocks' or 'ray'"),
        ("feature_specs", 3, "'feature_specs' is 3 .*: input should be a valid list"),
        ("model", "FM", "'model' cannot be changed with --set; name another --expid"),
        ("gpu", 0, "'gpu' cannot be changed with --set; use --gpu"),
        ("feature_cols", None, "lacks 'feature_cols'"),
        ("metrics", None, "lacks 'metrics'"),
    ],
)
def test_wrong_settings_name_key_value_and_way_out(key, value, message):
    with pytest.raises(UserError, match=message):
        load_experiment("DeepFM_LLaCTR_movielens100k", overrides={key: value})


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ({"name": "a", "active": True, "dtype": "str"}, r"'feature_cols\[1\]' is .*: 'type' Field required"),
        ({"name": "a", "active": True, "dtype": "str", "type": "text"}, r"'type' Input should be 'numeric', 'categ"),
        (
            {"name": "a", "active": True, "dtype": "__import__('os')", "type": "numeric"},
            r"'dtype' Input should be 'str', 'int",
        ),
        ("a", r"'feature_cols\[1\]' is 'a' \(str\): input should be a valid dictionary"),
    ],
)
def test_a_wrong_column_is_named(configs, column, message):
    good = {"name": "color", "active": True, "dtype": "str", "type": "categorical"}
    with pytest.raises(UserError, match=message):
        load_experiment("DeepFM_shop", configs, overrides={"feature_cols": [good, column]})


def test_a_misspelt_key_in_a_file_of_ours_is_an_error(configs):
    (configs / "method_config" / "LLaCTR.yaml").write_text("LLaCTR: {lamda_fre: 0.1}\n")
    with pytest.raises(UserError, match="unknown config key 'lamda_fre' .* did you mean 'lambda_fre'"):
        load_experiment("DeepFM_LLaCTR_shop", configs)


def test_only_changed_settings_change_the_identity(configs):
    plain = load_experiment("DeepFM_shop", configs)
    same = load_experiment("DeepFM_shop", configs, seed=7, overrides={"epochs": 2, "verbose": 1})
    other = load_experiment("DeepFM_shop", configs, seed=8)
    assert not plain.changed
    assert not same.changed
    assert other.changed
    assert plain.sha256 == same.sha256 != other.sha256
    assert other.full_id == f"DeepFM_shop_{other.sha256[:8]}"
    threads = load_experiment("DeepFM_shop", configs, overrides={"num_threads": 2})
    assert threads.changed and threads.sha256 != plain.sha256


def test_the_printed_config_is_a_config(configs, tmp_path):
    experiment = load_experiment("DeepFM_LLaCTR_shop", configs, seed=3)
    (tmp_path / "printed.yaml").write_text(experiment.to_yaml(), encoding="utf-8")
    again = load_experiment("DeepFM_LLaCTR_shop", tmp_path / "printed.yaml")
    assert again.params == experiment.params and again.sha256 == experiment.sha256
    with pytest.raises(UserError, match="unknown expid 'DeepFM_shop' .* did you mean"):
        load_experiment("DeepFM_shop", tmp_path / "printed.yaml")


def test_a_written_directory_is_read_alike_by_fuxictr_and_by_us(configs, tmp_path):
    experiment = load_experiment("DeepFM_LLaCTR_shop", configs)
    experiment.write_directory(tmp_path / "written")
    ours = load_experiment("DeepFM_LLaCTR_shop", tmp_path / "written").params
    fuxictr = load_config(str(tmp_path / "written"), "DeepFM_LLaCTR_shop")
    assert fuxictr["model"] == "DeepFM_LLaCTR"  # FuxiCTR's scripts know a model by one name
    assert {key: ours[key] for key in fuxictr if key not in ("model", "model_id")} == {
        key: value for key, value in fuxictr.items() if key not in ("model", "model_id")
    }
    assert ours == experiment.params and experiment.sha256 == load_experiment("DeepFM_LLaCTR_shop", configs).sha256


@pytest.mark.parametrize(("model", "method"), [("FM", "mine.py:MineModel"), ("net.py:Net", "LLaCTR")])
def test_a_written_directory_of_classes_of_files_is_read_by_us(configs, method_file, tmp_path, caplog, model, method):
    (tmp_path / "net.py").write_text(
        "from fuxictr_llm.model_zoo.backbones.FM import FM\n\n\nclass Net(FM):\n    pass\n"
    )
    with (configs / "model_config.yaml").open("a") as file:
        file.write(f"Some: {{model: '{model}', method: '{method}', dataset_id: shop}}\n")
    experiment = load_experiment("Some", configs)
    experiment.write_directory(tmp_path / "written")
    assert f"leave out 'method: {method}' and train the plain {model}" in caplog.text
    assert load_experiment("Some", tmp_path / "written").params == experiment.params
    assert load_config(str(tmp_path / "written"), "Some")["model"] == model


@pytest.fixture
def fuxictr_dir(tmp_path, configs):
    folder = tmp_path / "config"
    (folder / "model_config").mkdir(parents=True)
    (folder / "model_config" / "b.yaml").write_text(
        "Base: {model_root: ./c/, verbose: 0, patience: 2, seed: 1, task: binary_classification}\n"
        "FM_x: {model: FM_LLaCTR, dataset_id: shop, loss: binary_crossentropy, metrics: [AUC], optimizer: adam,\n"
        "       learning_rate: 1e-3, batch_size: 10, epochs: 1, seed: 2, min_categr_count: 5}\n"
    )
    (folder / "dataset_config.yaml").write_text((configs / "dataset_config.yaml").read_text())
    return folder


def test_a_plain_fuxictr_directory_resolves_as_in_fuxictr(fuxictr_dir, caplog):
    found = load_experiment("FM_x", fuxictr_dir)
    reference = load_config(str(fuxictr_dir), "FM_x")
    for key in set(reference) - {"model", "model_id", "learning_rate"}:
        assert found.params[key] == reference[key], key
    assert found.params["learning_rate"] == 0.001  # FuxiCTR reads 1e-3 as text
    assert (found.params["model"], found.params["method"]) == ("FM", "LLaCTR")
    assert found.params["min_categr_count"] == 1
    assert "'patience' of expid 'FM_x' of " in caplog.text and "has no effect" in caplog.text


def test_the_printed_config_of_a_plain_fuxictr_directory_is_a_config(fuxictr_dir, tmp_path):
    found = load_experiment("FM_x", fuxictr_dir)
    (tmp_path / "printed.yaml").write_text(found.to_yaml(), encoding="utf-8")
    again = load_experiment("FM_x", tmp_path / "printed.yaml").params
    assert "patience" in found.params and "patience" not in again
    assert {**again, "patience": 2} == found.params


def test_set_is_strict_in_a_plain_fuxictr_directory_too(fuxictr_dir):
    with pytest.raises(UserError, match="unknown config key 'batchsize'"):
        load_experiment("FM_x", fuxictr_dir, overrides={"batchsize": 1})
    with pytest.raises(UserError, match=r"unknown expid 'FM_y' .* did you mean 'FM_x'\?"):
        load_experiment("FM_y", fuxictr_dir)


def test_a_method_in_a_plain_fuxictr_directory_says_how_it_becomes_an_expid(fuxictr_dir):
    with pytest.raises(
        UserError, match="unknown expid 'DeepFM_LLaCTR_shop' .*'mkdir .*config/method_config' makes any"
    ):
        load_experiment("DeepFM_LLaCTR_shop", fuxictr_dir)
    (fuxictr_dir / "method_config").mkdir()
    edit(fuxictr_dir / "model_config" / "b.yaml", " patience: 2,", "")  # which FuxiCTR does not know either
    assert load_experiment("DeepFM_LLaCTR_shop", fuxictr_dir).params["method"] == "LLaCTR"


def test_what_fuxictr_needs_and_a_config_lacks_is_named(fuxictr_dir):
    path = fuxictr_dir / "model_config" / "b.yaml"
    path.write_text(path.read_text().replace("optimizer: adam,", "").replace("verbose: 0,", ""))
    with pytest.raises(UserError, match="lacks 'optimizer', 'verbose'"):
        load_experiment("FM_x", fuxictr_dir)


def test_a_config_that_is_none_says_so(tmp_path):
    with pytest.raises(UserError, match="neither a directory nor a YAML file"):
        load_experiment("FM_x", tmp_path / "absent")
    with pytest.raises(UserError, match=r"has neither model_config.yaml nor"):
        load_experiment("FM_x", tmp_path)
    (tmp_path / "broken.yaml").write_text("a: [1\nb: 2")
    with pytest.raises(UserError, match=r"broken.yaml, line 2 is not valid YAML"):
        load_experiment("FM_x", tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(UserError, match="must hold a mapping"):
        load_experiment("FM_x", tmp_path / "list.yaml")


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("dataset_config", "shop: [1]", r"entry 'shop' of .* must map keys to values \(got \[1\]\)"),
        ("dataset_config", "shop:", "entry 'shop' of .* must map keys to values"),
        ("dataset_config", "shop: mall", "unknown data set 'mall' in alias 'shop'"),
        ("model_config", "DeepFM: 3", "entry 'DeepFM' of .* must map keys to values"),
    ],
)
def test_entries_that_are_none_are_named(configs, kind, text, message):
    (configs / f"{kind}.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        load_experiment("DeepFM_shop", configs)


def test_a_backbone_with_an_underscore_in_its_name_is_found(configs, monkeypatch):
    from fuxictr_llm import registry

    monkeypatch.setattr(registry, "_backbones", dict(registry._backbones))
    registry.register_backbone(type("My_Net", (registry.find_backbone("DNN"),), {}))
    found = load_experiment("My_Net_LLaCTR_shop", configs).params
    assert (found["model"], found["method"], found["dataset_id"]) == ("My_Net", "LLaCTR", "shop")


def test_an_entry_given_twice_is_an_error(configs):
    (configs / "method_config" / "a.yaml").write_text("X: {}")
    (configs / "method_config" / "b.yaml").write_text("X: {}")
    with pytest.raises(UserError, match="'X' stands twice in .* the second time in b.yaml"):
        load_experiment("DeepFM_shop", configs)


def test_numbers_are_read_as_yaml_1_2_writes_them():
    assert parse_yaml("[1e-3, 1E5, -2.5e+2, 1.e-3, .5, 12, e5, 1e]", "here") == [
        1e-3, 1e5, -250.0, 1e-3, 0.5, 12, "e5", "1e"
    ]  # fmt: skip
    with pytest.raises(UserError, match="key 'a' is given twice"):
        parse_yaml("{a: 1, a: 2}", "here")
    with pytest.raises(UserError, match="not valid YAML"):
        parse_yaml("!!python/object/apply:os.system ['true']", "here")


def test_overrides_are_typed():
    assert parse_overrides(["a=1", "b=1e-3", "c=[1, x]", "d=null", "e=x=y", "f="]) == {
        "a": 1, "b": 1e-3, "c": [1, "x"], "d": None, "e": "x=y", "f": None
    }  # fmt: skip
    for wrong in (["a"], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(UserError, match="--set"):
            parse_overrides(wrong)


def test_a_key_of_both_backbone_and_method_is_a_warning(configs, tmp_path, caplog):
    (tmp_path / "my_net.py").write_text(
        "from fuxictr_llm.registry import find_backbone\n\nclass Net(find_backbone('DNN')):\n"
        "    def __init__(self, feature_map, alpha=1.0, **kwargs):\n        super().__init__(feature_map, **kwargs)\n"
    )
    config = configs / "model_config.yaml"
    config.write_text(config.read_text() + "Net: {model: my_net.py:Net}\n")
    load_experiment("Net_ELEC_shop", configs)
    assert "Net and ELEC both have the config keys 'alpha'; one value goes to both" in caplog.text
    caplog.clear()
    load_experiment("DeepFM_ELEC_shop", configs)
    load_experiment("Net_LLaCTR_shop", configs)
    assert not caplog.text


def test_anyones_model_is_a_backbone(configs, tmp_path, monkeypatch):
    (tmp_path / "my_net.py").write_text(
        "from fuxictr_llm.registry import find_backbone\n\nclass Net(find_backbone('DNN')):\n    pass\n\nclass Other:\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = configs / "model_config.yaml"
    config.write_text(config.read_text() + "mine: {model: 'my_net:Net', dataset_id: shop, hidden_units: [3]}\n")
    assert load_experiment("mine", configs).params["model"] == "my_net:Net"
    for name, message in (
        ("my_net:Nett", "unknown class 'Nett' .* did you mean 'Net'"),
        ("my_net:Other", "not a subclass"),
        ("no_net:Net", "importing 'no_net' failed"),
    ):
        config.write_text(f"mine: {{model: '{name}', dataset_id: shop}}\n")
        with pytest.raises(UserError, match=message):
            load_experiment("mine", configs)
