"""LLMEmb on every backbone: vectors where they belong, nothing else changed, and a clear word where they are missing."""

import copy
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fuxictr_llm import model_zoo
from fuxictr_llm.__main__ import main
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.loader import make_loaders
from fuxictr_llm.experiment.preparation import prepare_run
from fuxictr_llm.experiment.run import build_model, run_experiment
from support import BACKBONES, as_arguments, build
from support_process import run_code, run_codes_at_once

SETTINGS = {"FinalMLP": {"mlp1_hidden_units": [8], "mlp2_hidden_units": [8], "num_heads": 1}}


@pytest.fixture
def run(configs, llm):
    def run_it(expid="DeepFM_LLMEmb_shop", seed=None, **changes):
        return run_experiment(load_experiment(expid, configs, seed=seed, overrides={**llm, **changes}))

    return run_it


def predictions(result):
    return result.model.predict(make_loaders(result.run.feature_map, result.run.params, "test"))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_backbone_starts_from_the_vectors_and_trains(configs, llm, backbone):
    overrides = {**llm, **SETTINGS.get(backbone, {}), "epochs": 1}
    experiment = load_experiment(f"{backbone}_LLMEmb_shop", configs, overrides=overrides)
    prepared = prepare_run(experiment, "unused")
    model = build_model(prepared)
    columns = prepared.notes["value_vectors"]["columns"]
    assert list(columns) == ["color", "city", "tags"]  # the users' ids are no words
    weights = [name for name, _ in model.named_parameters() if name.endswith("pretrain_embedding.weight")]
    assert {name.split(".")[-3] for name in weights} == set(columns) and not list(model.enhancement.parameters())
    before = {name: model.state_dict()[name].clone() for name in weights}
    for name in weights:
        file = np.load(columns[name.split(".")[-3]]["path"])
        assert np.allclose(before[name][1 : len(file["key"]) + 1].norm(), np.linalg.norm(file["value"]), rtol=1e-5)
    result = run_experiment(experiment)
    assert all(not torch.equal(result.model.state_dict()[name], value) for name, value in before.items())
    assert result.record["parameters"]["method"] == 0 and 0 <= result.record["metrics"]["test"]["AUC"] <= 1


def test_it_is_the_plain_backbone_with_columns_that_ask(run):
    specs = [{"name": ["color", "city", "tags"], "pretrained_emb": "llm"}]
    by_method, by_columns = run(), run("DeepFM_shop", feature_specs=specs)
    assert (predictions(by_method) == predictions(by_columns)).all()
    assert by_method.record["notes"] == by_columns.record["notes"]
    assert by_columns.record["stages"]["encode values"]["cached"]
    assert by_method.record["notes"]["value_vectors"]["texts"] == "values of the train split"


def test_columns_usage_and_placebo_are_settings(run):
    result = run(value_fields=["city"], value_usage="sum", value_freeze=True, value_dim=3, field_vectors="shuffled")
    notes = result.record["notes"]["value_vectors"]
    assert notes["source"] == "shuffled"
    assert notes["columns"]["city"]["dim"] == 3
    assert len(notes["columns"]) == 1
    layer = result.model.embedding_layer.embedding_layer.embedding_layers["city"]
    file = np.load(notes["columns"]["city"]["path"])
    frozen = layer.pretrain_embedding.weight.numpy()
    assert layer.pretrain_usage == "sum"
    assert np.array_equal(frozen[1:7], file["value"])
    assert not frozen[[0, 7]].any()
    assert result.record["metrics"] != run(value_fields=["city"]).record["metrics"]


def test_specs_of_the_user_win(run, llm):
    spec = {"name": "color", "pretrained_emb": "llm", "pretrain_usage": "concat", "pretrain_dim": 2}
    result = run(value_fields=["color", "city"], feature_specs=[spec, {"name": "user", "embedding_dim": 4}])
    layers = result.model.embedding_layer.embedding_layer.embedding_layers
    assert (layers["color"].pretrain_usage, layers["city"].pretrain_usage) == ("concat", "init")
    assert layers["color"].pretrain_embedding.embedding_dim == 2


def test_trained_models_can_be_copied_and_pickled(run):
    result = run()
    for twin in (copy.deepcopy(result.model), pickle.loads(pickle.dumps(result.model))):
        assert all(torch.equal(value, result.model.state_dict()[name]) for name, value in twin.state_dict().items())
    assert result.model.backbone_state_dict().keys() == result.model.state_dict().keys()


def test_the_same_run_again_gives_the_same_and_seeds_share_the_vectors(run):
    first = run()
    again, other = run(), run(seed=99)
    assert again.record["metrics"] == first.record["metrics"] and again.record["stages"]["encode values"]["cached"]
    assert other.record["notes"] == first.record["notes"] and other.record["metrics"] != first.record["metrics"]


def test_a_run_with_cached_vectors_imports_no_language_library(configs, llm, monkeypatch):
    args = ["run", "--config", str(configs), "--expid", "FM_LLMEmb_shop", *as_arguments({**llm, "epochs": 1})]
    monkeypatch.setitem(sys.modules, "peft", None)  # nothing is tuned, so that nothing may import it
    assert main(args) == 0
    code = f"import sys; from fuxictr_llm.__main__ import main; print(main({args!r})); print('peft' in sys.modules, 'transformers' in sys.modules)"
    ended = run_code(code)
    assert ended.stdout.split() == ["0", "False", "False"], ended.stderr


def test_first_runs_at_once_share_the_encoding(configs, llm):
    assert main(["prepare", "--config", str(configs), "--expid", "FM_shop"]) == 0
    args = ["encode", "--config", str(configs), "--expid", "FM_LLMEmb_shop", *as_arguments(llm)]
    code = f"import sys; from fuxictr_llm.__main__ import main; sys.exit(main({args!r}))"
    one, other = run_codes_at_once(code, code)
    assert (one.returncode, other.returncode) == (0, 0), (one.stderr, other.stderr)
    assert one.stdout == other.stdout
    assert len(one.stdout.split()) == 3
    assert one.stderr.count("INFO Encoding") + other.stderr.count("INFO Encoding") == 3


def test_scripts_of_fuxictr_get_a_clear_word_or_given_files(configs, llm, tmp_path):
    with pytest.raises(
        UserError, match="LLMEmb needs feature_specs that name files of vectors; 'python -m fuxictr_llm"
    ):
        build(model_zoo.DeepFM_LLMEmb)
    prepared = prepare_run(load_experiment("DeepFM_LLMEmb_shop", configs, overrides=llm), "unused")
    model = model_zoo.DeepFM_LLMEmb(prepared.feature_map, **prepared.params)
    assert model.enhancement.config.value_usage == "init"
    specs = prepared.params["feature_specs"]
    assert [spec["name"] for spec in specs[1:]] == ["color", "city", "tags"]
    given = load_experiment("DeepFM_LLMEmb_shop", configs, overrides={"feature_specs": specs[1:]})
    given.write_directory(tmp_path / "written")
    result = run_experiment(load_experiment("DeepFM_LLMEmb_shop", tmp_path / "written"))
    assert list(result.record["notes"]) == ["given_vectors"] and result.run.params["feature_specs"] == specs[1:]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"value_fields": ["colour"]}, "unknown column 'colour' in 'value_fields'; did you mean 'color'?"),
        ({"value_fields": []}, "config key 'value_fields' is \\[\\]"),
        ({"value_fields": "color"}, "config key 'value_fields' is 'color'"),
        ({"value_usage": "initial"}, "config key 'value_usage' is 'initial'"),
        ({"field_vectors": "identity"}, "config key 'field_vectors' is 'identity' .*'llm', 'random' or 'shuffled'"),
        ({"value_scale": 0}, "config key 'value_scale' is 0"),
        (
            {"use_features": ["user"]},
            "no column of data set 'shop' has values that are words; name columns with value_fields",
        ),
        ({"language_model": "no/such"}, "unknown language model 'no/such'"),
    ],
)
def test_bad_settings_are_one_line(run, changes, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=message):
        run(**changes)
    assert not list(Path().glob("checkpoints/shop/*.model"))
