"""xDeepFM against Lian et al., equations 6-9, written out."""

import pytest
import torch

from literal import assert_logit, batch_of, build_backbone, fields_of, linear_literal, mlp_literal


def cin_literal(cin, x0):
    """`[F, D]` of one row -> its logit: a feature map is a weighted sum of the products of two maps' rows."""
    x, pooled = x0, []
    for layer in cin.cin_layer.values():
        maps = []
        for weight, bias in zip(layer.weight[:, :, 0], layer.bias, strict=True):
            by_pair = weight.view(len(x0), len(x))
            products = [by_pair[i, j] * x0[i] * x[j] for i in range(len(x0)) for j in range(len(x))]
            maps.append(sum(products) + bias)
        x = torch.stack(maps)
        pooled.extend(row.sum() for row in x)
    return cin.fc.weight[0] @ torch.stack(pooled) + cin.fc.bias[0]


@pytest.mark.parametrize(
    "params", [{"dnn_hidden_units": [6, 5], "batch_norm": True}, {"dnn_hidden_units": []}, {"cin_hidden_units": [5]}]
)
def test_the_logit_sums_the_linear_part_the_cin_and_the_mlp(params):
    model = build_backbone("xDeepFM", **{"cin_hidden_units": [3, 2], "dnn_hidden_units": [6], **params})
    batch = batch_of(model)
    e = fields_of(model, batch)
    expected = linear_literal(model.lr_layer, batch) + torch.stack([cin_literal(model.cin, row) for row in e])
    if params.get("dnn_hidden_units", True):
        expected = expected + mlp_literal(model.dnn, e.flatten(start_dim=1))[:, 0]
    assert_logit(model, batch, expected)


def test_a_cin_without_layers_is_named():
    with pytest.raises(ValueError, match=r"^cin_hidden_units must be a list of at least one width .got \[\].$"):
        build_backbone("xDeepFM", cin_hidden_units=[])
