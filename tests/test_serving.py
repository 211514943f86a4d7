"""Exported models predict as the trained ones, on every backbone, and bad folders and batches are one line."""

import json
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import fuxictr_llm
from fuxictr_llm import serving
from fuxictr_llm.__main__ import main
from fuxictr_llm.config import load_experiment
from fuxictr_llm.data.loader import make_loaders
from fuxictr_llm.enhancement import Enhancement, enhance
from fuxictr_llm.errors import UserError
from fuxictr_llm.experiment import run_experiment
from fuxictr_llm.exporting import export_run
from fuxictr_llm.feature_maps import describe_feature_map
from fuxictr_llm.files import digest_of_file, write_json
from fuxictr_llm.registry import find_backbone, find_method
from fuxictr_llm.semantics.vector_file import write_field_vectors
from fuxictr_llm.serving import load_model
from support import BACKBONES, AllTaps, batches, build, params, small_feature_map, train

every_backbone = pytest.mark.parametrize("name", BACKBONES)
LLACTR = {
    "default": {},
    "diagonal": {"fie_map": "diagonal"},
    "scalar": {"fie_form": "scalar"},
    "fre only": {"lambda_fie": 0.0},
    "off": {"lambda_fre": 0.0, "lambda_fie": 0.0},
    "reference": {"variant": "reference"},
}


def save_run(model, config, folder="runs"):
    """What a run leaves behind, as far as an export reads it."""
    Path(folder).mkdir(exist_ok=True)
    model.save_weights(Path(folder) / "a.model")
    feature_map = describe_feature_map(model.feature_map)
    record = {"model_id": "a", "config": config, "config_sha256": "0", "feature_map": feature_map}
    write_json(Path(folder) / "a.run.json", record)


def trained(name, method=None, keep=None, **changes):
    """A model after a few steps, and its run in runs/a."""
    feature_map = small_feature_map(name)
    for field in list(feature_map.features):
        if keep is not None and field not in keep:
            del feature_map.features[field]
    feature_map.num_fields = feature_map.get_num_fields()
    feature_map.set_column_index()
    if method == "LLaCTR":
        fields = [field for field, spec in feature_map.features.items() if spec["type"] != "meta"]
        vectors = torch.randn(len(fields), 9, generator=torch.Generator().manual_seed(3))
        write_field_vectors("vectors.safetensors", vectors, fields)
        changes = {"field_vectors": "vectors.safetensors", "lambda_fie": 0.7, **changes}
    cls = find_backbone(name)
    torch.manual_seed(0)
    settings = params(name, **changes)
    model = (enhance(cls, find_method(method).model_cls) if method else cls)(feature_map, **settings)
    train(model, steps_of(model, name)[:1])
    save_run(model, {"model": name, "method": method, "dataset_id": "small", **settings})
    Path("vectors.safetensors").unlink(missing_ok=True)  # an export needs no vectors
    return model.eval()


def steps_of(model, name):
    columns = [*model.feature_map.features, *model.feature_map.labels]
    return [{column: batch[column] for column in columns} for batch in batches(name)]


def expected_of(model, batch):
    with torch.no_grad():
        return model.forward({name: batch[name] for name in model.feature_map.features})["y_pred"].view(-1).numpy()


def assert_serves(model, name, to="served"):
    served = load_model(export_run("runs/a", to))
    for batch in steps_of(model, name):
        assert np.abs(served.predict(batch) - expected_of(model, batch)).max() <= 1e-6
    return served


@every_backbone
def test_a_plain_backbone_is_served_as_it_is(name):
    model = trained(name)
    served = assert_serves(model, name)
    assert type(served.model) is type(model) and "folded" in served.config and served.config["folded"] is None


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
        def loss(self, seen, y_true):
            return seen.embeddings.sum()

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
    for number, name in enumerate((run, f"{run}.run.json", f"{run}.model", "checkpoints/shop")):
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
    assert {path.name for path in Path("model").iterdir()} == {"config.json", "model.safetensors"}


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


SERVE = """
import json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("transformers", "peft", "gguf", "accelerate", "matplotlib"):
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocked())
import fuxictr_llm
served = fuxictr_llm.load_model("served")
batch = json.load(open("batch.json"))
print(json.dumps(served.predict(batch).tolist()))
own = ("fuxictr_llm.semantics", "fuxictr_llm.model_zoo.LLaCTR", "fuxictr_llm.data", "fuxictr_llm.experiment")
assert not [name for name in sys.modules if name.startswith(own)]
"""


def test_serving_needs_no_language_library():
    model = trained("DeepFM", "LLaCTR")
    export_run("runs/a", "served")
    batch = batches("DeepFM", 1)[0]
    Path("batch.json").write_text(json.dumps({name: column.tolist() for name, column in batch.items()}))
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(SERVE)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert np.abs(np.array(json.loads(done.stdout.splitlines()[-1])) - expected_of(model, batch)).max() <= 1e-6


@pytest.fixture
def served():
    trained("DNN", "LLaCTR")
    return load_model(export_run("runs/a", "served"))


def one_batch():
    return {name: column for name, column in batches("DNN", 1)[0].items() if name not in ("click", "group")}


def test_batches_of_any_size_and_kind(served, monkeypatch):
    batch = one_batch()
    expected = served.predict(batch)
    assert expected.shape == (8,) and expected.dtype == np.float32
    assert served.predict({name: column[:0] for name, column in batch.items()}).shape == (0,)
    assert np.allclose(served.predict({name: column[:1] for name, column in batch.items()}), expected[:1], atol=1e-6)
    assert np.array_equal(served.predict({name: column.numpy() for name, column in batch.items()}), expected)
    assert np.array_equal(served.predict({**batch, "other": ["words"] * 8}), expected)
    narrow = {name: column.to(torch.int16) if name in ("user", "item") else column for name, column in batch.items()}
    assert np.array_equal(served.predict(narrow), expected)
    monkeypatch.setattr(serving, "SLICE_ROWS", 3)
    assert np.allclose(served.predict(batch), expected, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in served.model.parameters())


def test_an_empty_batch_of_lists_is_empty(served):
    empty = {"user": [], "item": [], "price": [], "tags": np.zeros((0, 3)), "image": np.zeros((0, 6))}
    assert served.predict(empty).shape == (0,)


def test_threads_that_ask_at_once_get_their_own_rows(served):
    many = {name: column.repeat(200, *[1] * (column.dim() - 1)) for name, column in one_batch().items()}
    parts = [
        {name: column[start : start + 100 + start // 8] for name, column in many.items()}
        for start in range(0, 800, 100)
    ]
    expected = [served.predict(part) for part in parts]
    found = [[] for _ in parts]

    def ask(index):
        found[index] = [served.predict(parts[index]) for _ in range(20)]

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(parts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for answers, wanted in zip(found, expected, strict=True):
        assert len(answers) == 20 and all(np.array_equal(answer, wanted) for answer in answers)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user": None}, "the batch lacks column 'user'"),
        ({"user": [0, 12] * 4}, "column 'user' holds id 12; the model knows the ids 0 to 11"),
        ({"user": [0, -1] * 4}, "column 'user' holds id -1; the model knows the ids 0 to 11"),
        ({"tags": torch.full((8, 3), 7)}, "column 'tags' holds id 7; the model knows the ids 0 to 6"),
        ({"tags": torch.zeros(8, 2, dtype=torch.long)}, r"column 'tags' has shape \[8, 2\]; it must be \[N, 3\]"),
        ({"image": torch.zeros(8)}, r"column 'image' has shape \[8\]; it must be \[N, 6\]"),
        ({"user": torch.zeros(8, 1, dtype=torch.long)}, r"column 'user' has shape \[8, 1\]; it must be \[N\]"),
        ({"user": torch.zeros(8)}, r"column 'user' must hold integer ids \(got float32\)"),
        ({"user": ["Rome"] * 8}, "column 'user' holds no numbers"),
        ({"user": 3}, r"column 'user' has shape \[\]; it must be \[N\]"),
        ({"item": torch.zeros(7, dtype=torch.long)}, "column 'item' has 7 rows, 'user' has 8"),
        ({"price": torch.tensor([0.0, float("nan")] * 4)}, "column 'price' holds a value that is not finite: nan"),
        ({"price": [None] * 8}, "column 'price' holds no numbers"),
    ],
)  # fmt: skip
def test_bad_columns_are_named_with_their_value(served, changes, message):
    batch = {**one_batch(), **changes}
    batch = {name: column for name, column in batch.items() if column is not None}
    with pytest.raises(UserError, match=message) as raised:
        served.predict(batch)
    assert "\n" not in str(raised.value)


def changed(**changes):
    path = Path("served/config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without(key):
    path = Path("served/config.json")
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != key}))


def rewritten(tensors):
    save_file(tensors, "served/model.safetensors")
    changed(weights_sha256=digest_of_file("served/model.safetensors"))


def with_feature(**changes):
    feature_map = json.loads(Path("served/config.json").read_text())["feature_map"]
    feature_map["features"]["tags"] |= changes
    changed(feature_map=feature_map)


def garbage(weights=b"garbage"):
    Path("served/model.safetensors").write_bytes(weights)
    changed(weights_sha256=digest_of_file("served/model.safetensors"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda: Path("served").rename("gone"), "'served' is no exported model: it has no config.json; write it anew"),
        (lambda: Path("served/config.json").unlink(), "'served' is no exported model: it has no config.json"),
        (lambda: Path("served/config.json").write_text("{half"), "config.json' is damaged"),
        (lambda: Path("served/config.json").write_text("[1]"), "config.json' is damaged"),
        (lambda: changed(format=2), "has format 2, this version reads format 1"),
        (lambda: without("feature_map"), "lacks 'feature_map'"),
        (lambda: changed(feature_map={}), "'served' does not give a DNN .*write it anew"),
        (lambda: changed(feature_map=[]), r"lacks 'feature_map', or it is \[\]"),
        (lambda: changed(params={"hidden_units": [3]}), "'served' does not give a DNN"),
        (lambda: changed(params=3), "lacks 'params', or it is 3"),
        (lambda: changed(model="DNM"), "unknown backbone 'DNM' in 'served/config.json'; did you mean 'DNN'"),
        (lambda: changed(model="os:system"), "'os:system' is not a subclass of fuxictr"),
        (lambda: changed(model=7), "lacks 'model', or it is 7"),
        (lambda: changed(folded={"class": "Maths", "fields": []}), "unknown kind of folded method 'Maths'"),
        (lambda: changed(folded={"class": "PairWeights", "fields": ["user"]}), "'served' does not give a DNN"),
        (lambda: with_feature(feature_encoder="__import__('os').system('touch owned')"), "no call of a layer"),
        (lambda: with_feature(feature_encoder="layers.MaskedAveragePooling(open('owned', 'w'))"), "no call of a layer"),
        (lambda: with_feature(feature_encoder=7), "no call of a layer"),
        (lambda: Path("served/model.safetensors").unlink(), "model.safetensors' is missing"),
        (lambda: Path("served/model.safetensors").write_bytes(b"x"), r"not the file that was exported \(its sha256 differs\)"),
        (garbage, "'served' does not give a DNN"),
        (lambda: rewritten({"a": torch.zeros(1)}), "'served' does not give a DNN"),
    ],
)  # fmt: skip
def test_damaged_folders_are_one_line(served, damage, message):
    damage()
    with pytest.raises(UserError, match=message) as raised:
        load_model("served")
    assert "\n" not in str(raised.value) and not Path("owned").exists()


def test_a_gpu_that_is_not_there_is_named(served):
    with pytest.raises(UserError, match="--gpu 99: this machine has"):
        load_model("served", gpu=99)


def test_settings_that_fuxictr_would_evaluate_do_not_reach_it(served):
    config = json.loads(Path("served/config.json").read_text())
    evil = "open('owned', 'w')"
    changed(
        params={**config["params"], "loss": evil, "optimizer": "x", "embedding_initializer": evil, "metrics": [evil]}
    )
    assert np.array_equal(load_model("served").predict(one_batch()), served.predict(one_batch()))
    assert not Path("owned").exists()


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
    for name, message in (("served", "holds other files"), ("other", "holds other files"), ("taken", "is a file")):
        with pytest.raises(UserError, match=message):
            export_run("runs/a", name)
    assert Path("served/notes.txt").read_text() == Path("taken").read_text() == "mine"
    with pytest.raises(UserError, match="cannot write to"):
        export_run("runs/a", "taken/below")
    export_run("runs/a", "empty")
    export_run("runs/a", "new/deep")
    assert load_model("new/deep").fields == load_model("empty").fields


def test_an_export_that_cannot_be_loaded_leaves_the_old_one(served, monkeypatch):
    def broken(folder):
        raise UserError("it does not load")

    before = Path("served/model.safetensors").read_bytes()
    monkeypatch.setattr("fuxictr_llm.exporting.load_model", broken)
    with pytest.raises(UserError, match="does not load"):
        export_run("runs/a", "served")
    assert Path("served/model.safetensors").read_bytes() == before
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]


def test_the_export_of_a_bad_run_is_exit_code_2(capsys):
    assert main(["export", "--run", "absent", "--to", "served"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown run 'absent'")
