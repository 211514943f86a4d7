"""FiBiNET against Huang et al., its layers written out."""

from itertools import combinations

import pytest
import torch

from literal import assert_logit, batch_of, build_backbone, fields_of, linear_literal, mlp_literal


def pairs_literal(layer, kind, e):
    """`[F, D]` of one row -> a vector for each pair: `(v_i W) * v_j`."""
    out = []
    for number, (i, j) in enumerate(combinations(range(len(e)), 2)):
        weight = layer.bilinear_W if kind == "field_all" else layer.bilinear_W[i if kind == "field_each" else number]
        out.append((e[i] @ weight) * e[j])
    return torch.cat(out)


def senet_literal(layer, e, activation):
    squeezed = torch.stack([field.mean() for field in e])
    first, second = layer.excitation[0].weight, layer.excitation[2].weight
    weights = activation(second @ torch.relu(first @ squeezed))
    return torch.stack([weight * field for weight, field in zip(weights, e, strict=True)])


@pytest.mark.parametrize("kind", ["field_all", "field_each", "field_interaction"])
@pytest.mark.parametrize(
    "params",
    [
        {"excitation_activation": "ReLU"},
        {"excitation_activation": "Sigmoid", "reduction_ratio": 2, "hidden_units": [6, 5], "batch_norm": True},
    ],
)
def test_the_logit_is_one_of_bilinear_pairs_before_and_after_the_senet(kind, params):
    model = build_backbone("FiBiNET", bilinear_type=kind, **params)
    batch = batch_of(model)
    activation = getattr(torch, params["excitation_activation"].lower())
    seen = []
    for e in fields_of(model, batch):
        reweighted = senet_literal(model.senet_layer, e, activation)
        pairs = pairs_literal(model.bilinear_interaction1, kind, e)
        seen.append(torch.cat([pairs, pairs_literal(model.bilinear_interaction2, kind, reweighted)]))
    assert_logit(model, batch, mlp_literal(model.dnn, torch.stack(seen))[:, 0] + linear_literal(model.lr_layer, batch))


@pytest.mark.parametrize(
    "params, message",
    [
        ({"bilinear_type": "all"}, "bilinear_type must be one of field_all, field_each, field_interaction .got 'all'."),
        ({"excitation_activation": "tanh"}, "excitation_activation must be one of relu, sigmoid .got 'tanh'."),
        ({"reduction_ratio": 0}, "reduction_ratio must be positive .got 0."),
    ],
)
def test_wrong_arguments_are_named(params, message):
    with pytest.raises(ValueError, match=message):
        build_backbone("FiBiNET", **params)
