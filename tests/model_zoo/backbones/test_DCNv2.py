"""DCNv2 against Wang et al., equations 1 and 3, and its figure 1, written out."""

import pytest
import torch

from literal import assert_logit, batch_of, build_backbone, mlp_literal
from support import small_feature_map


def crossed_literal(net, x0):
    x = x0
    for layer in net.cross_layers:
        x = x0 * (layer.weight @ x + layer.bias) + x
    return x


def mixed_literal(net, x0):
    """Low-rank experts, weighted by a softmax of their gates."""
    x = x0
    for layer in range(net.layer_num):
        scores = torch.stack([gate.weight[0] @ x for gate in net.gating])
        weights = scores.exp() / scores.exp().sum()
        mixed = 0
        for i, weight in enumerate(weights):
            low = torch.tanh(net.C_list[layer][i] @ torch.tanh(net.V_list[layer][i].T @ x))
            mixed = mixed + weight * x0 * (net.U_list[layer][i] @ low + net.bias[layer][:, 0])
        x = mixed + x
    return x


@pytest.mark.parametrize("dims", [{}, {"user": 3, "image": 5}])
@pytest.mark.parametrize("use_low_rank_mixture", [False, True])
@pytest.mark.parametrize("structure", ["crossnet_only", "stacked", "parallel", "stacked_parallel"])
def test_the_logit_is_one_of_crosses_and_an_mlp(structure, use_low_rank_mixture, dims):
    feature_map = small_feature_map("DCNv2")
    for field, dim in dims.items():
        feature_map.features[field]["embedding_dim"] = dim
    params = {"use_low_rank_mixture": use_low_rank_mixture, "low_rank": 2, "num_experts": 3, "num_cross_layers": 2}
    units = {"stacked_dnn_hidden_units": [6, 5], "parallel_dnn_hidden_units": [4]}
    model = build_backbone("DCNv2", feature_map, model_structure=structure, **params, **units)
    batch = batch_of(model)
    flat = model.embedding_layer(model.get_inputs(batch), flatten_emb=True)
    literal = mixed_literal if use_low_rank_mixture else crossed_literal
    final = torch.stack([literal(model.crossnet, row) for row in flat])
    if "stacked" in structure:
        final = mlp_literal(model.stacked_dnn, final)
    if "parallel" in structure:
        final = torch.cat([final, mlp_literal(model.parallel_dnn, flat)], dim=-1)
    assert_logit(model, batch, final @ model.fc.weight[0] + model.fc.bias[0])
    row = {name: column[:1] for name, column in batch.items()}
    torch.testing.assert_close(model.forward(row)["y_pred"], model.forward(batch)["y_pred"][:1])


def test_another_structure_is_named():
    with pytest.raises(ValueError, match="model_structure must be one of crossnet_only, .* .got 'deep'."):
        build_backbone("DCNv2", model_structure="deep")
