"""AFM against Xiao et al., equations 5-6, written out."""

from itertools import combinations

import pytest
import torch

from literal import assert_logit, batch_of, build_backbone, fields_of, linear_literal


@pytest.mark.parametrize("use_attention", [True, False])
def test_the_logit_weighs_each_pair_by_attention(use_attention):
    model = build_backbone("AFM", attention_dim=8, attention_dropout=[0.2, 0.3], use_attention=use_attention)
    batch = batch_of(model)
    W, h, p = model.attention[0], model.attention[2].weight[0], model.weight_p.weight[0]
    expected = linear_literal(model.lr_layer, batch)
    for row, e in enumerate(fields_of(model, batch)):
        pairs = [e[i] * e[j] for i, j in combinations(range(len(e)), 2)]
        scores = torch.stack([h @ torch.relu(W.weight @ pair + W.bias) for pair in pairs]).exp()
        for score, pair in zip(scores, pairs, strict=True):
            expected[row] += p @ (score / scores.sum() * pair) if use_attention else pair.sum()
    assert_logit(model, batch, expected)


def test_both_dropouts_are_active_in_training():
    model = build_backbone("AFM", attention_dropout=[0.5, 0.0])
    batch = batch_of(model)
    for rates in ([0.5, 0.0], [0.0, 0.5], [0.0, 0.0]):
        model.dropout1.p, model.dropout2.p = rates
        model.train()
        first, second = (model.forward(batch)["y_pred"] for _ in range(2))
        assert torch.equal(first, second) == (rates == [0.0, 0.0])


@pytest.mark.parametrize("rates", [0.2, [0.2]])
def test_a_dropout_that_is_not_two_rates_is_named(rates):
    with pytest.raises(ValueError, match="^attention_dropout must be a list of two rates .got"):
        build_backbone("AFM", attention_dropout=rates)
