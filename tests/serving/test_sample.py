"""An export predicts what its run predicted, or is refused."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fuxictr_llm import export_run, load_experiment, load_model, run_experiment
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.sealed import sealed
from fuxictr_llm.registry import find_method
from fuxictr_llm.serving import sample


@pytest.fixture
def ran(configs, tiny_settings):
    """A finished run of DeepFM with LLaCTR: its files without their endings, and its record."""
    result = run_experiment(load_experiment("DeepFM_LLaCTR_shop", configs, overrides={**tiny_settings, "epochs": 1}))
    return Path(result.model.checkpoint.removesuffix(".model")), result.record


def edit_record(files, change):
    path = files.with_name(f"{files.name}.run.json")
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(sealed(record)))


def test_an_export_whose_formula_was_edited_is_refused_and_replaces_nothing(ran, monkeypatch):
    files, record = ran
    assert len(record["sample"]["y_pred"]) == sample.ROWS
    served = load_model(export_run(files, "served"))
    assert np.allclose(served.predict(record["sample"]["columns"]), np.ravel(record["sample"]["y_pred"]), atol=1e-6)
    before = Path("served/config.json").read_bytes()

    method = find_method("LLaCTR").model_cls
    fold = method.fold

    def edited(config, anatomy, state):
        folded = fold(config, anatomy, state)
        for parameter in [*folded.parameters(), *folded.buffers()]:
            if parameter.is_floating_point():
                parameter += 0.1
        return folded

    monkeypatch.setattr(method, "fold", edited)
    with pytest.raises(UserError, match=r"the export of .*DeepFM_LLaCTR_shop.*' predicts 0\.\d+ for a row .* the fold"):
        export_run(files, "served")
    assert Path("served/config.json").read_bytes() == before
    edit_record(files, lambda record: record["sources"]["code"].update(method="other"))
    with pytest.raises(UserError, match="the code of LLaCTR was changed since; train again, or export with"):
        export_run(files, "served")
    edit_record(files, lambda record: record.pop("sample"))  # of an earlier version
    export_run(files, "served")


@pytest.mark.parametrize(("gpu", "refused"), [(None, True), (-1, True), (0, False), (1, False)])
def test_a_run_on_a_gpu_may_be_further_from_its_export(gpu, refused):
    served = SimpleNamespace(fields=["color"], predict=lambda columns: np.array([0.3005]))
    record = {"config": {"gpu": gpu}, "sample": {"columns": {"color": [1]}, "y_pred": [[0.3]]}}
    with pytest.raises(UserError, match="the export predicts 0.300500 for a row") if refused else nullcontext():
        sample.check_sample(served, record, "the export")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y_pred": [["high"]]}, "has 'sample.y_pred.0.0': 'high'"),
        ({"y_pred": []}, "has 'sample.y_pred'"),
        ({"columns": {"color": 1}}, "has 'sample.columns.color'"),
        ({"columns": None}, "has 'sample.columns'"),
    ],
)
def test_a_damaged_sample_is_one_line(ran, changes, message):
    edit_record(ran[0], lambda record: record["sample"].update(changes))
    with pytest.raises(UserError, match=message):
        export_run(ran[0], "served")


def test_a_sample_and_predictions_of_other_numbers_of_rows_are_one_line(ran):
    edit_record(ran[0], lambda record: record["sample"]["y_pred"].pop())
    with pytest.raises(UserError, match="damaged"):
        export_run(ran[0], "served")


def test_rows_are_few_where_they_are_wide_and_none_of_tuples():
    class Wide(torch.nn.Module):
        def __init__(self, features):
            super().__init__()
            self.feature_map = type("Map", (), {"features": features, "labels": ["click"]})

        def forward(self, batch):
            return {"y_pred": batch["vector"].sum(dim=1, keepdim=True)}

    model = Wide({"vector": {"type": "embedding"}, "user": {"type": "meta"}})
    rows = [{"vector": torch.ones(100, 15_000), "user": torch.ones(100)}]
    taken = sample.sample_of(model, rows)
    assert taken["y_pred"] == [[15_000.0]] and taken["columns"].keys() == {"vector"}
    assert sample.sample_of(model, [({}, {}, torch.ones(2, 2))]) is None
    assert sample.sample_of(model, []) is None
