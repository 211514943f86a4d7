"""WuKong against Zhang et al., sections 3.2-3.5, written out."""

import pytest
import torch

from literal import assert_logit, batch_of, build_backbone, fields_of, mlp_literal
from support import small_feature_map


def layer_literal(layer, x, layer_norm):
    """`[in, D] -> [fmb + lcb, D]` of one row."""
    others = x if layer.fmb.proj_Y is None else layer.fmb.proj_Y.T @ x
    pairs = torch.stack([torch.stack([one @ other for other in others]) for one in x])
    machines = mlp_literal(layer.fmb.mlp, layer.fmb.layer_norm(pairs.flatten())).view(layer.fmb.shape)
    compressed = layer.lcb["linear"].weight @ x
    residual = x
    if len(x) != len(machines) + len(compressed):
        residual = layer.residual_proj.weight @ x + layer.residual_proj.bias[:, None]
    out = torch.cat([machines, compressed]) + residual
    return layer.layer_norm(out) if layer_norm else out


@pytest.mark.parametrize(
    "params",
    [
        {"fmp_rank_k": 2, "layer_norm": True, "mlp_batch_norm": True, "num_wukong_layers": 2},
        {"fmp_rank_k": None, "layer_norm": False, "mlp_batch_norm": False, "num_wukong_layers": 1},
        {"fmp_rank_k": 3, "layer_norm": True, "fmb_features": 2, "net_dropout": 0.2},  # as wide as its input
    ],
)
def test_the_logit_is_an_mlp_above_stacked_factorization_machines(params):
    sizes = {"lcb_features": 3, "fmb_features": 4, "fmb_mlp_units": [5], "mlp_hidden_units": [6]}
    model = build_backbone("WuKong", small_feature_map("WuKong"), **{**sizes, **params})
    batch = batch_of(model)
    rows = []
    for x in fields_of(model, batch):
        for layer in model.wukong_stack:
            x = layer_literal(layer, x, params["layer_norm"])
        rows.append(x.flatten())
    assert_logit(model, batch, mlp_literal(model.fc, torch.stack(rows)))
