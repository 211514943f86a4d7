"""GDCN against Wang et al., its gated cross layers written out."""

import pytest
import torch

from literal import assert_logit, batch_of, build_backbone, mlp_literal
from support import small_feature_map


@pytest.mark.parametrize("dims", [{}, {"user": 3, "image": 5}])
@pytest.mark.parametrize(
    "params",
    [
        {"dnn_hidden_units": [6, 5], "batch_norm": True, "num_cross_layers": 2},
        {"dnn_hidden_units": [], "num_cross_layers": 1},
    ],
)
def test_the_logit_is_an_mlp_of_gated_crosses(params, dims):
    feature_map = small_feature_map("GDCN")
    for field, dim in dims.items():
        feature_map.features[field]["embedding_dim"] = dim
    model = build_backbone("GDCN", feature_map, **params)
    batch = batch_of(model)
    crossed = []
    for base in model.embedding_layer(model.get_inputs(batch), flatten_emb=True):
        c, net = base, model.cross_net
        for layer in range(params["num_cross_layers"]):
            gate = 1 / (1 + (-(net.wg[layer].weight @ c)).exp())
            c = base * (net.w[layer].weight @ c + net.b[layer]) * gate + c
        crossed.append(c)
    assert_logit(model, batch, mlp_literal(model.dnn, torch.stack(crossed)))
