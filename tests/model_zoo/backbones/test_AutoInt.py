"""AutoInt against Song et al., equations 5-9, written out."""

import pytest
import torch

from literal import assert_logit, batch_of, build_backbone, fields_of, linear_literal, mlp_literal
from support import small_feature_map


def attention_literal(layer, e, heads, scaled):
    """`[F, in] -> [F, out]` of one row: each field is a mean of all fields, weighted by head."""
    width = layer.W_q.out_features // heads
    out = torch.zeros(len(e), heads * width)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        query, key, value = (e @ w.weight[part].T for w in (layer.W_q, layer.W_k, layer.W_v))
        for m in range(len(e)):
            similar = torch.stack([query[m] @ key[k] for k in range(len(e))]) / (width**0.5 if scaled else 1)
            weights = similar.exp() / similar.exp().sum()
            out[m, part] = sum(weights[k] * value[k] for k in range(len(e)))
    return out


@pytest.mark.parametrize(
    "params",
    [
        {"num_heads": 2, "attention_layers": 2, "net_dropout": 0.2},
        {"num_heads": 2, "use_scale": True, "layer_norm": True, "dnn_hidden_units": []},
        {"attention_dim": 4, "use_wide": True, "batch_norm": True},
        {"attention_dim": 6, "use_residual": False},
    ],
)
def test_the_logit_is_one_of_the_attended_fields_and_of_an_mlp(params):
    feature_map = small_feature_map("FM" if params.get("use_wide") else "AutoInt")
    params = {"attention_dim": 8, "dnn_hidden_units": [6], "use_residual": True, **params}
    model = build_backbone("AutoInt", feature_map, **params)
    batch = batch_of(model)
    fields = fields_of(model, batch)
    rows = []
    for e in fields:
        for layer in model.self_attention:
            attended = attention_literal(layer, e, params.get("num_heads", 1), params.get("use_scale"))
            if params["use_residual"]:
                attended = attended + (e if e.shape == attended.shape else e @ layer.W_res.weight.T)
            e = torch.relu(layer.layer_norm(attended) if params.get("layer_norm") else attended)
        rows.append(model.fc.weight[0] @ e.flatten() + model.fc.bias[0])
    expected = torch.stack(rows)
    if params["dnn_hidden_units"]:
        expected = expected + mlp_literal(model.dnn, fields.flatten(start_dim=1))[:, 0]
    if params.get("use_wide"):
        expected = expected + linear_literal(model.lr_layer, batch)
    assert_logit(model, batch, expected)


@pytest.mark.parametrize(
    "params, message",
    [
        ({"attention_dim": 7, "num_heads": 2}, r"attention_dim \(7\) must be divisible by num_heads \(2\)"),
        ({"attention_layers": 0}, r"attention_layers must be 1 or more \(got 0\)"),
    ],
)
def test_wrong_arguments_are_named(params, message):
    with pytest.raises(ValueError, match=message):
        build_backbone("AutoInt", **params)
