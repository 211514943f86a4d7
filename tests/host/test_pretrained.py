"""What FuxiCTR's layer for given vectors gets wrong: noise at padding, and data sets of one column."""

import numpy as np
import pandas as pd
import pytest
import torch

from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.loader import make_loaders
from fuxictr_llm.experiment.run import build_model, run_experiment
from support import edit, embedding_of, vocabulary


@pytest.mark.parametrize("usage", ["init", "sum", "concat"])
@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize("dim", [None, "full"])
def test_padding_is_zero_and_stays_it(prepared, usage, freeze, dim):
    changes = {"value_usage": usage, "value_freeze": freeze, "value_dim": dim, "embedding_regularizer": 1e-3}
    run = prepared({"tags": {}, "city": {}}, **changes, weight_decay=1e-3)
    model = build_model(run)
    layer, file = embedding_of(model, "tags"), np.load(run.feature_map.features["tags"]["pretrained_emb"])
    assert layer.oov_idx == vocabulary("tags")["__OOV__"] == 4
    for key, vector in zip(file["key"], file["value"], strict=True):
        row = layer.pretrain_embedding.weight[vocabulary("tags")[key]]
        assert np.allclose(row.detach().numpy(), vector)
    before = layer.pretrain_embedding.weight.detach().clone()
    rows = make_loaders(run.feature_map, run.params, "train")[0]
    model._max_gradient_norm = 10.0
    model.train()
    for _, batch in zip(range(3), rows, strict=False):
        model.train_step(batch)
    assert torch.equal(layer.pretrain_embedding.weight, before) == freeze
    ids = torch.tensor([[0, 0, 0], [1, 2, 0], [1, 2, 3]])
    vectors = layer(ids)
    assert vectors[ids == 0].eq(0).all() and vectors[ids != 0].ne(0).any(dim=-1).all()
    pooled = model.embedding_layer({"tags": ids})
    assert torch.allclose(pooled[1, 0], vectors[1, :2].mean(dim=0), atol=1e-6) and pooled[0].eq(0).all()
    model.save_weights("weights.model")
    other = build_model(run)
    other.load_weights("weights.model")
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_data_set_of_one_column_and_of_one_value(configs, llm):
    edit(configs / "dataset_config.yaml", "- {name: [color, city, user]", "- {name: color")
    edit(
        configs / "dataset_config.yaml",
        "    - {name: tags, active: true, dtype: str, type: sequence, splitter: ^, max_len: 3}\n",
        "",
    )
    (configs.parent / "words.yaml").write_text("fields: {color: color of the shirt}")
    overrides = {**llm, "feature_specs": [{"name": "color", "pretrained_emb": "llm"}]}
    result = run_experiment(load_experiment("DNN_shop", configs, overrides=overrides))
    assert result.record["metrics"]["test"]["AUC"] > 0 and result.model.feature_map.data_dir.endswith("shop")
    table = pd.read_csv("raw/train.csv")
    table["color"] = "red"
    table.to_csv("raw/train.csv", index=False)
    result = run_experiment(load_experiment("DNN_shop", configs, overrides=overrides))
    assert result.record["notes"]["value_vectors"]["columns"]["color"]["values"] == 1
