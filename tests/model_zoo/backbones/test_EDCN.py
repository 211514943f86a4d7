"""EDCN against Chen et al., its layers, bridges and regulations written out (FuxiCTR's cross layer: no `+ x_l`)."""

import pytest
import torch

from literal import assert_logit, batch_of, build_backbone, fields_of
from support import small_feature_map


def regulated_literal(x, gates, norm, temperature, dim):
    total = sum((gate / temperature).exp() for gate in gates)
    x = torch.cat([(gate / temperature).exp() / total * x[i * dim : (i + 1) * dim] for i, gate in enumerate(gates)])
    if norm is None:
        return x
    return (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias


def attended_literal(layers, x):
    scores = layers[2].weight @ torch.relu(layers[0].weight @ x + layers[0].bias)
    return scores.exp() / scores.exp().sum() * x


def bridged_literal(bridge, kind, cross, deep):
    if kind == "hadamard_product":
        return torch.stack([c * d for c, d in zip(cross, deep, strict=True)])
    if kind == "pointwise_addition":
        return torch.stack([c + d for c, d in zip(cross, deep, strict=True)])
    if kind == "concatenation":
        linear = bridge.concat_pooling[0]
        return torch.relu(linear.weight @ torch.cat([cross, deep]) + linear.bias)
    return attended_literal(bridge.attention1, cross) + attended_literal(bridge.attention1, deep)


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("kind", ["hadamard_product", "pointwise_addition", "concatenation", "attention_pooling"])
def test_the_logit_is_one_of_both_networks_and_their_last_bridge(kind, batch_norm):
    params = {"num_cross_layers": 2, "temperature": 0.5, "net_dropout": 0.2, "batch_norm": batch_norm}
    model = build_backbone("EDCN", small_feature_map("EDCN"), bridge_type=kind, **params)
    batch = batch_of(model)
    expected = []
    for e in fields_of(model, batch):
        base, shared = None, e.flatten()
        for i, regulation in enumerate(model.regulation_modules):
            gates = ((regulation.g1, regulation.bn1), (regulation.g2, regulation.bn2))
            cross, deep = (regulated_literal(shared, gate, norm, 0.5, e.shape[1]) for gate, norm in gates)
            base = cross if base is None else base
            cross = base * (model.cross_layers[i].weight.weight[0] @ cross) + model.cross_layers[i].bias
            linear = model.dense_layers[i].mlp[0]
            deep = torch.relu(linear.weight @ deep + linear.bias)
            shared = bridged_literal(model.bridge_modules[i], kind, cross, deep)
        expected.append(model.fc.weight[0] @ torch.cat([cross, deep, shared]) + model.fc.bias[0])
    assert_logit(model, batch, torch.stack(expected))


@pytest.mark.parametrize(
    "params, message",
    [
        ({"num_cross_layers": 0}, "num_cross_layers must be 1 or more .got 0."),
        ({"bridge_type": "sum"}, "bridge_type must be one of hadamard_product, .*, attention_pooling .got 'sum'."),
        ({"temperature": 0}, "temperature must be positive .got 0."),
    ],
)
def test_wrong_arguments_are_named(params, message):
    with pytest.raises(ValueError, match=message):
        build_backbone("EDCN", **params)
