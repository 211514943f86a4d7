"""DCN against Wang et al., equations 3-5, written out."""

import pytest
import torch

from literal import assert_logit, batch_of, build_backbone, mlp_literal
from support import small_feature_map


@pytest.mark.parametrize(
    "params",
    [{"num_cross_layers": 0}, {"num_cross_layers": 3}, {"dnn_hidden_units": [6, 5], "batch_norm": True}],
)
def test_the_logit_is_linear_in_the_cross_network_and_the_mlp(params):
    feature_map = small_feature_map("DCN")
    feature_map.features["user"]["embedding_dim"] = 3
    model = build_backbone("DCN", feature_map, **params)
    batch = batch_of(model)
    flat = model.embedding_layer(model.get_inputs(batch), flatten_emb=True)
    deep = mlp_literal(model.dnn, flat) if params.get("dnn_hidden_units") else flat[:, :0]
    expected = []
    for x0, h in zip(flat, deep, strict=True):
        x = x0
        for layer in model.crossnet.cross_net:
            x = torch.outer(x0, x) @ layer.weight.weight[0] + layer.bias + x
        expected.append(model.fc.weight[0] @ torch.cat([x, h]) + model.fc.bias[0])
    assert len(model.crossnet.cross_net) == params.get("num_cross_layers", 3)
    assert_logit(model, batch, torch.stack(expected))
