"""AFN against Cheng et al., its logarithmic neurons written out as products of powers."""

import pytest
import torch

from literal import assert_logit, batch_of, build_backbone, fields_of, mlp_literal
from support import small_feature_map


def normed_literal(norm, values):
    """BatchNorm of `[channels, D]` as in evaluation mode, channel by channel."""
    scaled = []
    for i, row in enumerate(values):
        scale = norm.weight[i] / (norm.running_var[i] + norm.eps).sqrt()
        scaled.append((row - norm.running_mean[i]) * scale + norm.bias[i])
    return torch.stack(scaled)


@pytest.mark.parametrize(
    "params",
    [
        {"ensemble_dnn": True, "dnn_hidden_units": [5], "batch_norm": True, "afn_dropout": 0.2, "dnn_dropout": 0.2},
        {"ensemble_dnn": True, "dnn_hidden_units": [5], "batch_norm": False, "logarithmic_neurons": 1},
        {"ensemble_dnn": False, "batch_norm": True},
    ],
)
def test_the_logit_is_an_mlp_of_products_of_powers(params):
    model = build_backbone(
        "AFN", small_feature_map("AFN"), afn_hidden_units=[6], **{"logarithmic_neurons": 3, **params}
    )
    with torch.no_grad():
        model.coefficient_W.weight.mul_(0.2)  # the powers are exponents
        model.embedding_layer.embedding_layer.embedding_layers["user"].weight[1:, 0] = 0  # clipped
    batch = batch_of(model)
    products = []
    for e in fields_of(model, batch):
        factors = normed_literal(model.log_batch_norm, torch.log(e.abs().maximum(torch.tensor(1e-5)))).exp()
        neurons = []
        for powers in model.coefficient_W.weight:
            neuron = torch.ones(e.shape[1])
            for factor, power in zip(factors, powers, strict=True):
                neuron = neuron * factor**power
            neurons.append(neuron)
        products.append(normed_literal(model.exp_batch_norm, torch.stack(neurons)).flatten())
    expected = mlp_literal(model.dense_layer, torch.stack(products))
    if params["ensemble_dnn"]:
        deep = mlp_literal(model.dnn, fields_of(model, batch, "embedding_layer2").flatten(start_dim=1))
        expected = torch.cat([expected, deep], dim=-1) @ model.fc.weight[0] + model.fc.bias[0]
    assert_logit(model, batch, expected)


def test_no_logarithmic_neuron_is_named():
    with pytest.raises(ValueError, match="logarithmic_neurons must be 1 or more .got 0."):
        build_backbone("AFN", logarithmic_neurons=0)
