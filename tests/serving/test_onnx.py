"""Graphs beside an export: they predict what torch does, and a model that has none says so and leaves all as it was."""

import importlib.util
import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from fuxictr_llm.__main__ import main
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of_file
from fuxictr_llm.diagnosis import zoo_table
from fuxictr_llm.diagnosis.doctor import Finding
from fuxictr_llm.diagnosis.tiny import tiny_case
from fuxictr_llm.host.checkout import VARIABLE
from fuxictr_llm.registry import backbone_names, find_backbone
from fuxictr_llm.serving import graph_checks, traced
from fuxictr_llm.serving.export import export_run
from fuxictr_llm.serving.load import load_model
from support import params, save_run, small_feature_map, steps_of, train, trained

# Their forward passes: as it is traced, with a number of rows that tracing takes for a constant, and with a branch.
FILE = """
import torch
from fuxictr_llm.model_zoo.backbones.DNN import DNN


class Counting(DNN):
    def forward(self, inputs):
        inputs["price"] = inputs["price"] + torch.zeros(1).expand(len(inputs["price"]))
        return super().forward(inputs)


class Branching(DNN):
    def forward(self, inputs):
        if inputs["price"].sum() > 0:
            inputs["price"] = inputs["price"] * 2
        return super().forward(inputs)
"""


def session_of(folder):
    return onnxruntime.InferenceSession(Path(folder) / "model.onnx", providers=["CPUExecutionProvider"])


def inputs_of(served, rows=7):
    """Other rows than those of the check."""
    batch = {name: column.flip(0)[:rows] for name, column in traced.check_batch(served).items()}
    return batch, {name: column.numpy() for name, column in batch.items()}


def files_in(folder):
    return {path.name: digest_of_file(path) for path in Path(folder).iterdir()}


def test_a_folded_model_is_written_as_onnx_and_pt2_and_predicts_the_same(capsys):
    trained("DeepFM", "LLaCTR")
    assert main(["export", "--run", "runs/a", "--to", "served", "--onnx", "--pt2"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "served\n"
    (warning,) = printed.err.splitlines()  # and nothing of torch's
    assert "answers ids, and no raw rows" in warning
    served, session = load_model("served"), session_of("served")
    assert served.config["folded"]["class"] == "PairWeights"
    shapes = {each.name: (each.type, each.shape) for each in session.get_inputs()}
    assert shapes == {
        "user": ("tensor(int64)", ["rows"]),
        "item": ("tensor(int64)", ["rows"]),
        "price": ("tensor(float)", ["rows"]),
        "tags": ("tensor(int64)", ["rows", 3]),
    }
    assert [(each.name, each.shape) for each in session.get_outputs()] == [("click", ["rows"])]
    batch, arrays = inputs_of(served)
    expected = served.predict(batch)
    assert np.ptp(expected) > 0.01
    assert np.abs(session.run(None, arrays)[0] - expected).max() <= 1e-6
    module = torch.export.load("served/model.pt2").module()
    other_order = dict(reversed(batch.items()))
    assert np.abs(module(other_order)["click"].numpy() - expected).max() <= 1e-6

    with zipfile.ZipFile("served/model.pt2") as archive:
        contents = [Path("served/model.onnx").read_bytes(), *map(archive.read, archive.namelist())]
    here = [b"site-packages", *(str(path).encode() for path in (Path.cwd(), Path(traced.__file__).parents[2]))]
    assert not any(path in content for content in contents for path in here)

    graphs = json.loads(Path("served/config.json").read_text())["graphs"]
    assert graphs["onnx"]["files"] == {"model.onnx": digest_of_file("served/model.onnx")}
    assert graphs["pt2"]["files"] == {"model.pt2": digest_of_file("served/model.pt2")}
    assert 0 <= graphs["onnx"]["largest_difference"] <= 1e-6 and graphs["pt2"]["largest_difference"] <= 1e-6
    assert graphs["onnx"]["opset"] == onnx.load("served/model.onnx").opset_import[0].version
    assert all(
        part["exporter"].startswith(f"torch.{kind} {torch.__version__}")
        for kind, part in zip(["onnx", "export"], graphs.values(), strict=True)
    )
    export_run("runs/a", "served")  # an export replaces one with graphs
    assert files_in("served").keys() == {"config.json", "model.safetensors"}


def test_large_weights_lie_beside_the_graph(monkeypatch):
    monkeypatch.setattr("fuxictr_llm.serving.onnx.MOST_BYTES", 1000)
    trained("DNN", hidden_units=[64])
    served = load_model(export_run("runs/a", "served", ["onnx"]))
    noted = served.config["graphs"]["onnx"]["files"]
    assert noted == {name: digest_of_file(f"served/{name}") for name in ("model.onnx", "model.onnx.data")}
    largest = max(tensor.nbytes for tensor in served.model.state_dict().values())
    assert Path("served/model.onnx.data").stat().st_size >= largest > 1000
    Path("served").rename("moved")
    batch, arrays = inputs_of(served)
    assert np.abs(session_of("moved").run(None, arrays)[0] - served.predict(batch)).max() <= 1e-6
    export_run("runs/a", "moved")  # an export replaces one with both files
    assert files_in("moved").keys() == {"DNN.model", "config.json", "model.safetensors"}


def test_names_of_columns_may_be_those_of_operators():
    feature_map = small_feature_map("FM")
    new = {"user": "embedding", "item": "sigmoid", "price": "linear", "tags": "Größe (cm)", "group": "group"}
    features = {new[name]: spec for name, spec in feature_map.features.items()}
    feature_map.features.clear()
    feature_map.features.update(features)
    feature_map.labels = ["view"]
    settings = params("FM")
    model = find_backbone("FM")(feature_map, **settings)
    save_run(model, {"model": "FM", **settings})
    served = load_model(export_run("runs/a", "served", ["onnx"]))
    session = session_of("served")
    assert [each.name for each in session.get_inputs()] == list(served.fields)
    batch, arrays = inputs_of(served)
    assert np.abs(session.run(["view"], arrays)[0] - served.predict(batch)).max() <= 1e-6


@pytest.mark.parametrize("name", ["TransAct", "MMoE"])
def test_models_of_sequences_and_of_several_tasks_have_graphs(name, monkeypatch):
    def keep_outputs(run, to, graphs):
        outputs.extend(each.name for each in session_of(export_run(run, to, graphs)).get_outputs())

    outputs = []
    monkeypatch.setattr(graph_checks, "export_run", keep_outputs)
    findings = graph_checks.graphs_of(tiny_case(find_backbone(name)), [])
    assert findings == {"plain": Finding("passed", "works")}
    assert outputs == (["click", "buy"] if name == "MMoE" else ["click"])


@pytest.mark.parametrize(("name", "settings"), [("BST", {}), ("DIEN", {"attention_type": "din_attention"})])
def test_models_whose_code_hides_rows_from_a_graph_have_one(name, settings, monkeypatch):
    monkeypatch.setattr(graph_checks, "export_run", lambda run, to, _: export_run(run, to, ["pt2"]))
    case = tiny_case(find_backbone(name), **settings)
    assert graph_checks.graphs_of(case, []) == {"plain": Finding("passed", "works")}


def test_a_check_has_all_ids_and_sequences_of_all_lengths():
    served = load_model(export_run(_run_of("DNN"), "served"))
    batch = traced.check_batch(served)
    assert {*batch["user"].tolist()} == {*range(12)} and {*batch["tags"].unique().tolist()} == {*range(7)}
    assert batch["tags"][0].tolist() == [0, 0, 0]
    real = batch["tags"] != 0
    assert {tuple(row) for row in real.tolist()} >= {(True, True, False), (False, True, True), (True, True, True)}
    assert all(column.isfinite().all() for column in batch.values())
    ids = traced._spread_ids(500, 10**9, torch.Generator())
    assert ids.min() == 0 and ids.max() == 10**9 - 1 and len(ids.unique()) == 500


def test_a_graph_that_answers_otherwise_is_refused():
    served = load_model(export_run(_run_of("DNN"), "served"))

    def answer(batch, error, rows=None):
        return {"click": served.predict(batch)[:rows] + np.float32(error)}

    assert traced.largest_difference(served, lambda batch: answer(batch, 0)) == 0
    assert 0 < traced.largest_difference(served, lambda batch: answer(batch, 5e-7)) <= 1e-6
    with pytest.raises(UserError, match="predicts up to 1.0e-04 more or less than torch .allowed: 1e-06."):
        traced.largest_difference(served, lambda batch: answer(batch, 1e-4))
    for wrong in ({"error": np.nan}, {"error": 0, "rows": 1}):
        with pytest.raises(UserError, match="answers otherwise than torch"):
            traced.largest_difference(served, lambda batch, wrong=wrong: answer(batch, **wrong))


def test_code_that_hides_the_number_of_rows_is_read_and_one_that_branches_is_refused(capsys):
    Path("mine.py").write_text(FILE)
    run = _run_of("DNN", "mine.py:Counting")
    served = load_model(export_run(run, "served", ["pt2"]))
    batch, _ = inputs_of(served)
    answers = torch.export.load("served/model.pt2").module()(batch)["click"]
    assert np.abs(answers.numpy() - served.predict(batch)).max() <= 1e-6

    before, run = files_in("served"), _run_of("DNN", "mine.py:Branching")
    assert main(["export", "--run", run, "--to", "served", "--onnx"]) == 2
    error = capsys.readouterr().err
    assert (
        "Branching has no graph: torch.export cannot trace it (its code branches on values of a batch)" in error
        and error.count("\n") == 1
    )
    assert files_in("served") == before
    assert main(["export", "--run", run, "--to", "new", "--pt2"]) == 2
    assert not Path("new").exists()


def test_bad_input_is_one_line_and_writes_nothing(capsys, monkeypatch):
    run = _run_of("DNN")
    Path("mine").mkdir()
    Path("mine/model.onnx").write_text("mine")
    assert main(["export", "--run", run, "--to", "mine", "--onnx"]) == 2
    assert "'mine' holds other files than an export's" in capsys.readouterr().err
    with pytest.raises(UserError, match="unknown kind of graph 'onxx'; did you mean 'onnx'"):
        export_run(run, "new", ["onxx"])
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else find(name))
    assert main(["export", "--run", run, "--to", "new", "--onnx"]) == 2
    assert capsys.readouterr().err == "error: --onnx needs onnxruntime: pip install 'fuxictr-llm[onnx]'\n"
    assert main(["zoo", "--onnx"]) == 2
    assert not Path("new").exists()


def test_the_table_of_a_zoo_tries_each_method(monkeypatch, capsys):
    findings = graph_checks.graphs_of(tiny_case(find_backbone("FM")), ["LLMEmb", "KAR"])  # KAR adds columns
    assert findings == dict.fromkeys(["plain", "LLMEmb", "KAR"], Finding("passed", "works"))
    failed = Finding("failed", "FM cannot be exported")
    assert graph_checks.cell_of(findings) == "works"
    assert graph_checks.cell_of({**findings, "LLMEmb": failed}) == "works without LLMEmb: FM cannot be exported"
    assert graph_checks.cell_of({"plain": failed, "LLaCTR": failed}) == "FM cannot be exported"
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.setattr(
        zoo_table, "look_at_all", lambda names, _look, methods, *_: [_row(name, methods) for name in names]
    )
    assert main(["zoo", "--onnx"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert f"{len(backbone_names()) - 1} can be exported as ONNX (" in printed and "DIN with ONNX: no luck" in printed


def _row(name, methods):
    return zoo_table.ZooRow(
        name, {method: "no luck" if (name, method) == ("DIN", "ONNX") else "works" for method in methods}
    )


def _run_of(backbone, cls=None):
    """A run in runs/a of a backbone or of a class that has its settings."""
    settings = params(backbone)
    model = find_backbone(cls or backbone)(small_feature_map(backbone), **settings)
    train(model, steps_of(model, backbone)[:1])
    save_run(model, {"model": cls or backbone, **settings})
    return "runs/a"
