"""KAR: the adaptor against a slow literal one, and whole runs on a small data set with a tiny language model."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import WORDS

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.loader import make_loaders
from fuxictr_llm.experiment.preparation import prepare_run
from fuxictr_llm.experiment.run import run_experiment
from fuxictr_llm.llm.vectors.value_tables import read_value_tables, write_value_tables
from fuxictr_llm.model_zoo.KAR.config import KARConfig
from fuxictr_llm.model_zoo.KAR.experts import HybridExperts
from fuxictr_llm.serving.export import export_run
from fuxictr_llm.serving.load import load_model
from support import predictions, vocabulary

B, W = 4, 6
SMALL = KARConfig(shared_experts=2, dedicated_experts=3, expert_hidden=5, knowledge_dim=4)


@torch.no_grad()
def literal(adaptor, name, r):
    """v of one vector, expert by expert."""
    experts = [*adaptor.shared, *adaptor.dedicated[f"of_{name}"]]
    gate = adaptor.gates[f"of_{name}"]
    scores = [float(gate.weight[k] @ r + gate.bias[k]) for k in range(len(experts))]
    weights = [np.exp(score) / sum(map(np.exp, scores)) for score in scores]
    out = np.zeros(4)
    for weight, expert in zip(weights, experts, strict=True):
        first, second = expert[0], expert[3]
        hidden = [max(0.0, float(first.weight[i] @ r + first.bias[i])) for i in range(5)]
        answer = [
            max(0.0, sum(float(second.weight[j, i]) * hidden[i] for i in range(5)) + float(second.bias[j]))
            for j in range(4)
        ]
        out += weight * np.array(answer)
    return out if any(r != 0) else np.zeros(4)


def test_the_adaptor_is_that_of_its_equations():
    torch.manual_seed(0)
    adaptor = HybridExperts(SMALL, ["user", "item"], W)
    vectors = {"user": torch.randn(B, W), "item": torch.randn(B, W)}
    vectors["item"][2] = 0  # no knowledge
    adapted = adaptor(vectors)
    for name, r in vectors.items():
        expected = np.stack([literal(adaptor, name, row) for row in r])
        assert np.allclose(adapted[name].detach().numpy(), expected, atol=1e-5)
        assert (adapted[name] >= 0).all() and adapted[name].shape == (B, 4)
    other = adaptor({**vectors, "item": torch.randn(B, W)})
    assert torch.equal(other["user"], adapted["user"])  # blind to the item's


def test_the_adaptor_of_the_paper_has_as_many_parameters():
    adaptor = HybridExperts(KARConfig(), ["user", "item"], 768)
    assert sum(weight.numel() for weight in adaptor.parameters()) == 1_241_486


@pytest.fixture
def shop(configs, llm, tmp_path):
    """An experiment on `shop` with knowledge of five of six colors, and of one that the data does not have."""
    texts = [f"{color} is {['warm', 'cold'][index % 2]}" for index, color in enumerate(WORDS[:5])]
    pd.DataFrame({"color": [*WORDS[:5], "mauve"], "says": [*texts, "pale"]}).to_csv("colors.csv", index=False)
    pd.DataFrame({"user": ["0", "1"], "says": ["likes red", "likes blue"]}).to_csv("users.csv", index=False)
    knowledge = {
        "color": {"file": "colors.csv", "key": "color", "text": "says"},
        "user": {"file": "users.csv", "key": "user", "text": "says"},
    }
    small = {"epochs": 1, "expert_hidden": 8, "knowledge_dim": 4, "value_texts": knowledge}

    def load(**changes):
        return load_experiment("DeepFM_KAR_shop", configs, overrides={**llm, **small, **changes})

    return load


def test_knowledge_is_adapted_in_training_and_looked_up_by_id_when_served(shop, monkeypatch, tmp_path):
    result = run_experiment(shop())
    log = Path(result.model.checkpoint).with_suffix(".log").read_text()
    assert "value_texts of 'color' has knowledge of 1 values that the data does not have, as 'mauve'" in log
    assert "1 of 6 values of column 'color' have no text: their vectors are zeros" in log
    method, known = result.model.enhancement, vocabulary("color")
    assert result.model.added_columns == ("llm_vector_color", "llm_vector_user")
    assert result.record["parameters"]["method"] == sum(weight.numel() for weight in method.adaptor.parameters())
    ids = {"color": torch.tensor([known[WORDS[0]], known[WORDS[5]], 0]), "user": torch.tensor([1, 2, 3])}
    looked_up = method.eval().inputs(ids)["llm_vector_color"]
    assert torch.allclose(looked_up, method.train().inputs(ids)["llm_vector_color"], atol=1e-6)
    assert looked_up[0].any() and not looked_up[1:].any()  # no knowledge, no vector

    monkeypatch.setitem(sys.modules, "transformers", None)
    served = load_model(export_run(f"checkpoints/shop/{result.record['model_id']}", tmp_path / "served"))
    assert served.fields == ("color", "city", "user", "tags")
    assert not any("adaptor" in name for name in served.model.state_dict())
    for batch in make_loaders(result.run.feature_map, result.run.params, "test"):
        assert np.array_equal(served.predict(batch), predictions(result.model, [batch]).view(-1).numpy())


def test_other_weights_are_looked_up_anew(shop):
    result = run_experiment(shop())
    model = result.model.eval()
    (batch,) = [*make_loaders(result.run.feature_map, result.run.params, "test")][:1]
    before = predictions(model, [batch])
    state = {
        name: torch.randn_like(value) if "adaptor" in name else value for name, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    assert not torch.equal(model.forward(batch)["y_pred"], before)


def test_placebos_and_what_the_data_says_itself(shop, caplog):
    found = {}
    for name, changes in {"llm": {}, "shuffled": {"field_vectors": "shuffled"}, "own": {"value_texts": None}}.items():
        run = prepare_run(shop(**changes), "unused")
        found[name] = read_value_tables(run.params["value_tables"])[0]
    assert [*found["own"]] == ["color", "city"] and "KAR has no knowledge (knowledge_model, value_texts)" in caplog.text
    assert not torch.equal(found["llm"]["color"], found["shuffled"]["color"])
    assert (found["llm"]["color"] != 0).any(dim=1).sum() == (found["shuffled"]["color"] != 0).any(dim=1).sum() == 5


def side(column, **changes):
    return {"value_texts": {column: {"file": "colors.csv", "key": "color", "text": "says", **changes}}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (side("colour"), "unknown column 'colour' in 'value_texts'; did you mean 'color'"),
        (side("tags"), "unknown column of one id a row 'tags' in 'value_texts'"),
        (side("city"), "no value of column 'city' has a text; name other columns, or give texts with value_texts"),
        (side("color", file="none.csv"), "value_texts of 'color': 'none.csv' is missing"),
        ({"dedicated_experts": 0}, "config key 'dedicated_experts' is 0"),
        ({"value_tables": "two.safetensors"}, "value_tables 'two.safetensors' has vectors of several widths"),
    ],
)
def test_bad_settings_are_one_line(shop, tmp_path, changes, message):
    write_value_tables(
        tmp_path / "two.safetensors",
        {"color": torch.zeros(8, 3), "city": torch.zeros(8, 4)},
        {"color": [8, 7], "city": [8, 7]},
    )
    with pytest.raises(UserError, match=message):
        run_experiment(shop(**changes))
