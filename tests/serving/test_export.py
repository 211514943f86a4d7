"""Runs as they are exported: served predictions are the trained model's, on every backbone and in every form."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import fuxictr_llm
from fuxictr_llm.__main__ import main
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of_file
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.loader import make_loaders
from fuxictr_llm.enhancement.base import Enhancement
from fuxictr_llm.experiment.record import count_parameters
from fuxictr_llm.experiment.run import run_experiment
from fuxictr_llm.registry import find_backbone
from fuxictr_llm.serving.export import export_run
from fuxictr_llm.serving.load import load_model
from support import (
    BACKBONES,
    AllTaps,
    assert_serves,
    batches,
    build,
    expected_of,
    params,
    save_run,
    small_feature_map,
    trained,
)

every_backbone = pytest.mark.parametrize("name", BACKBONES)
LLACTR = {
    "default": {},
    "full": {"fie_map": "full"},
    "diagonal": {"fie_map": "diagonal"},
    "scalar": {"fie_form": "scalar"},
    "fre only": {"lambda_fie": 0.0},
    "off": {"lambda_fre": 0.0, "lambda_fie": 0.0},
    "reference": {"variant": "reference"},
}


@every_backbone
def test_a_plain_backbone_is_served_as_it_is(name):
    model = trained(name)
    served = assert_serves(model, name)
    assert type(served.model) is type(model)
    assert "folded" in served.config
    assert served.config["folded"] is None


@pytest.mark.parametrize("name", ["DeepFM", "DCNv2", "FinalMLP", "FM"])
@pytest.mark.parametrize("method", [None, "LLaCTR"])
def test_where_nothing_is_left_of_a_method_fuxictrs_own_class_takes_the_checkpoint(name, method):
    model = trained(name, method, **(LLACTR["fre only"] if method else {}))
    export_run("runs/a", "served")
    checkpoint = json.loads(Path("served/config.json").read_text())["fuxictr_checkpoint"]
    file = Path("served") / checkpoint["file"]
    assert checkpoint == {"file": f"{name}.model", "sha256": digest_of_file(file)}
    assert {path.name for path in Path("served").iterdir()} == {"config.json", "model.safetensors", f"{name}.model"}
    plain = find_backbone(name)(small_feature_map(name), **params(name))
    plain.load_weights(file)
    assert type(plain) is find_backbone(name) and not hasattr(plain, "enhancement")
    assert count_parameters(plain) == {**count_parameters(model), "method": 0}
    plain.eval()
    for batch in batches(name):
        assert np.array_equal(expected_of(plain, batch), expected_of(model, batch))
    assert load_model(export_run("runs/a", "served")).config["fuxictr_checkpoint"] == checkpoint  # replaces itself
    trained(name, "LLaCTR")
    assert load_model(export_run("runs/a", "served")).config["fuxictr_checkpoint"] is None  # here there is a fold
    assert {path.name for path in Path("served").iterdir()} == {"config.json", "model.safetensors"}


@pytest.mark.parametrize(
    ("name", "others", "theirs"),
    [
        ("FinalMLP", {"mlp1", "mlp2"}, {"fs_module.fs1_ctx_emb", "fs_module.fs2_ctx_bias", "fs_module.fs1_gate"}
         | {"fs_module.fs2_gate", "fusion_module.w_x", "fusion_module.w_y", "fusion_module.w_xy"}),
        ("WuKong", {"fc"}, {f"wukong_stack.{layer}" for layer in range(2)}),
    ],
)  # fmt: skip
def test_parameters_are_named_as_in_fuxictrs_own_zoo(name, others, theirs):
    depths = {"fs_module": 2, "fusion_module": 2, "wukong_stack": 2}
    names = [key.split(".") for key in build(name, name).state_dict()]
    found = {".".join(parts[: depths.get(parts[0], 1)]) for parts in names}
    assert found == {"embedding_layer"} | others | theirs
    inside = {".".join(parts[2:4]) for parts in names if parts[0] == "wukong_stack"}
    expected = {"fmb.proj_Y", "fmb.layer_norm", "fmb.mlp", "lcb.linear", "layer_norm.weight", "layer_norm.bias"}
    assert inside - {"residual_proj.weight", "residual_proj.bias"} == (expected if name == "WuKong" else set())


@every_backbone
@pytest.mark.parametrize("form", LLACTR)
def test_llactr_is_served_folded(name, form):
    model = trained(name, "LLaCTR", **LLACTR[form])
    served = assert_serves(model, name)
    scalar = form == "scalar" or (form == "reference" and name in ("FinalMLP", "WuKong"))
    expected = None if form in ("fre only", "off") else "Shift" if scalar else "PairWeights"
    assert (served.config["folded"] or {}).get("class") == expected
    fields = len(model.enhancement.anatomy.fields)
    extra = load_file("served/model.safetensors").keys() - model.backbone_state_dict().keys()
    assert extra == {None: set(), "Shift": {"enhancement.shift"}, "PairWeights": {"enhancement.weights"}}[expected]
    if expected == "PairWeights":
        weights = load_file("served/model.safetensors")["enhancement.weights"]
        assert weights.shape == (fields * (fields - 1) // 2,)
        full = 0.7 * model.enhancement.fie.pair_weights()
        assert torch.allclose(weights, full[tuple(torch.triu_indices(fields, fields, 1))], atol=1e-6)
        assert served.config["folded"]["fields"] == list(model.enhancement.anatomy.fields)


@pytest.mark.parametrize("keep", [["user"], ["tags"], ["user", "tags"]])
def test_one_field_and_sequences_are_served(keep):
    served = assert_serves(trained("DNN", "LLaCTR", keep=keep), "DNN")
    assert served.fields == tuple(keep)
    assert (served.config["folded"] is None) == (len(keep) == 1)


def test_a_method_without_a_part_at_inference_folds_to_the_plain_backbone_and_others_must_say_how():
    class OnlyLoss(Enhancement):
        def loss(self, trace, y_true):
            return trace.embeddings.sum()

    assert OnlyLoss.fold(None, None, {}) is None
    with pytest.raises(UserError, match="uses the tap 'representation' at inference and has no fold"):
        AllTaps.fold(None, None, {})


def test_a_run_is_exported_from_the_command_line_and_served_elsewhere(
    configs, tiny_settings, tmp_path, monkeypatch, capsys
):
    overrides = {**tiny_settings, "use_features": ["tags", "color"]}
    result = run_experiment(load_experiment("DeepFM_LLaCTR_shop", configs, overrides=overrides))
    run = f"checkpoints/shop/{result.record['model_id']}"
    expected = result.model.predict(make_loaders(result.run.feature_map, result.run.params, "test"))
    rows = list(make_loaders(result.run.feature_map, result.run.params, "test"))
    files = result.model.checkpoint.removesuffix(".model")
    for number, name in enumerate((run, files, f"{files}.run.json", f"{files}.model", "checkpoints/shop")):
        assert main(["export", "--run", name, "--to", f"served{number}"]) == 0
        assert capsys.readouterr().out == f"served{number}\n"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "served0").rename(tmp_path / "elsewhere" / "model")
    monkeypatch.chdir(tmp_path / "elsewhere")
    for gone in ("checkpoints", "data", "cache", "raw", "my_configs"):
        (tmp_path / gone).rename(tmp_path / f"no_{gone}")
    served = fuxictr_llm.load_model("model")
    assert np.abs(np.concatenate([served.predict(batch) for batch in rows]) - expected).max() <= 1e-6
    assert served.fields == ("tags", "color") and str(tmp_path) not in Path("model/config.json").read_text()
    config = json.loads(Path("model/config.json").read_text())
    assert (config["method"], config["variant"], config["feature_map"]["labels"]) == ("LLaCTR", "corrected", ["click"])
    assert config["source"]["config_sha256"] == result.record["config_sha256"]
    assert config["data"] == result.record["data"] and config["data"]["dataset_id"] == "shop"
    files = {"config.json", "model.safetensors", "preprocessing.json", "vocabularies.parquet"}
    assert {path.name for path in Path("model").iterdir()} == files


@pytest.mark.parametrize("usage", ["init", "sum", "concat"])
def test_pretrained_embeddings_are_served_without_their_files(configs, usage, tmp_path):
    np.savez("cities.npz", key=np.array(["Rome", "Oslo"]), value=np.random.default_rng(0).normal(size=(2, 6)))
    spec = {
        "name": ["city"],
        "pretrained_emb": str(tmp_path / "cities.npz"),
        "pretrain_dim": 6,
        "pretrain_usage": usage,
    }
    spec |= {"freeze_emb": usage == "sum", "oov_idx": 1}
    result = run_experiment(load_experiment("FM_shop", configs, overrides={"feature_specs": [spec]}))
    rows = list(make_loaders(result.run.feature_map, result.run.params, "test"))
    expected = result.model.predict(rows)
    export_run(f"checkpoints/shop/{result.record['model_id']}", "served")
    assert str(tmp_path) not in Path("served/config.json").read_text()
    Path("cities.npz").unlink()
    served = load_model("served")
    assert np.abs(np.concatenate([served.predict(batch) for batch in rows]) - expected).max() <= 1e-6
    assert served.model.feature_map.features["city"]["pretrained_emb"] is None


def test_a_plain_run_with_vectors_of_a_language_model_exports_nothing_of_it(configs, llm, tmp_path):
    specs = [{"name": "color", "pretrained_emb": "llm"}]
    result = run_experiment(load_experiment("FM_shop", configs, overrides={**llm, "feature_specs": specs}))
    rows = list(make_loaders(result.run.feature_map, result.run.params, "test"))
    served = load_model(export_run(f"checkpoints/shop/{result.record['model_id']}", "served"))
    assert np.abs(np.concatenate([served.predict(batch) for batch in rows]) - result.model.predict(rows)).max() <= 1e-6
    text = Path("served/config.json").read_text()
    assert "language_model" not in text
    assert str(tmp_path) not in text
    assert llm["language_model"] not in text


def test_a_shared_embedding_is_served():
    feature_map = small_feature_map("DNN")
    feature_map.features["item"] |= {"share_embedding": "user", "vocab_size": 12}
    torch.manual_seed(0)
    model = find_backbone("DNN")(feature_map, **params("DNN")).eval()
    save_run(model, {"model": "DNN", "dataset_id": "small", **params("DNN")})
    served = load_model(export_run("runs/a", "served"))
    batch = {**batches("DNN", 1)[0], "item": torch.arange(8) % 12}
    assert np.abs(served.predict(batch) - expected_of(model, batch)).max() <= 1e-6


def test_a_backbone_from_anywhere_is_named_by_its_module(monkeypatch):
    Path("shop_models.py").write_text(
        "from fuxictr_llm.model_zoo.backbones.FM import FM\n\n\nclass Mine(FM):\n    pass\n"
    )
    monkeypatch.syspath_prepend(".")
    model = build(find_backbone("shop_models:Mine"), "FM").eval()
    save_run(model, {"model": "shop_models:Mine", "dataset_id": "small", **params("FM")})
    served = load_model(export_run("runs/a", "served"))
    assert served.config["model"] == "shop_models:Mine" and type(served.model) is type(model)


def test_runs_that_are_not_there_or_damaged_are_named():
    with pytest.raises(UserError, match="unknown run 'runs/a'; known: none"):
        export_run("runs/a", "served")
    trained("DNN")
    with pytest.raises(UserError, match="unknown run 'runs/b'; did you mean 'runs/a'"):
        export_run("runs/b", "served")
    Path("empty").mkdir()
    with pytest.raises(UserError, match="'empty' holds 0 runs"):
        export_run("empty", "served")
    record = Path("runs/a.run.json").read_text()
    Path("runs/b.run.json").write_text(record)
    with pytest.raises(UserError, match="'runs' holds 2 runs; name one: runs/a, runs/b"):
        export_run("runs", "served")
    with pytest.raises(UserError, match=r"'runs/b.model' is missing"):
        export_run("runs/b", "served")
    Path("runs/b.model").write_bytes(b"garbage")
    with pytest.raises(UserError, match=r"'runs/b.model' is damaged"):
        export_run("runs/b", "served")
    for text in ("{half", "[]", '{"config": {}}'):
        Path("runs/b.run.json").write_text(text)
        with pytest.raises(UserError, match=r"'runs/b.run.json' is damaged or of an earlier version"):
            export_run("runs/b", "served")
    build("DNN", "DNN", hidden_units=[3]).save_weights("runs/b.model")
    Path("runs/b.run.json").write_text(record)
    with pytest.raises(UserError, match=r"the weights beside 'runs/b.run.json' are of other settings"):
        export_run("runs/b", "served")
    assert not Path("served").exists()


def test_an_export_replaces_an_export_and_nothing_else(served):
    before = Path("served/model.safetensors").read_bytes()
    trained("DNN", seed=5, learning_rate=0.1)
    export_run("runs/a", "served")
    assert Path("served/model.safetensors").read_bytes() != before
    Path("served/notes.txt").write_text("mine")
    Path("taken").write_text("mine")
    Path("other").mkdir()
    Path("other/config.json").write_text("{}")
    Path("empty").mkdir()
    export_run("runs/a", "with_more")
    Path("with_more/FM.model").write_text("mine")  # the export's own is DNN.model
    for name, message in (
        ("served", "holds other files"),
        ("other", "holds other files"),
        ("with_more", "holds other files"),
        ("taken", "is a file"),
    ):
        with pytest.raises(UserError, match=message):
            export_run("runs/a", name)
    assert Path("served/notes.txt").read_text() == Path("taken").read_text() == "mine"
    with pytest.raises(UserError, match="cannot write to"):
        export_run("runs/a", "taken/below")
    export_run("runs/a", "empty")
    assert Path("empty/model.safetensors").stat().st_mode & 0o777 == 0o644
    export_run("runs/a", "new/deep")
    assert load_model("new/deep").fields == load_model("empty").fields


def test_an_export_that_cannot_be_loaded_leaves_the_old_one(served, monkeypatch):
    def broken(folder):
        raise UserError("it does not load")

    before = Path("served/model.safetensors").read_bytes()
    monkeypatch.setattr("fuxictr_llm.serving.export.load_model", broken)
    with pytest.raises(UserError, match="does not load"):
        export_run("runs/a", "served")
    assert Path("served/model.safetensors").read_bytes() == before
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]


def test_the_export_of_a_bad_run_is_exit_code_2(capsys):
    assert main(["export", "--run", "absent", "--to", "served"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown run 'absent'")
