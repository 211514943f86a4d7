"""DeepFM against Guo et al., equations 1-4, written out."""

from itertools import combinations

import pytest

from literal import assert_logit, batch_of, build_backbone, fields_of, linear_literal, mlp_literal


@pytest.mark.parametrize(
    "params", [{"hidden_units": [6, 5], "batch_norm": True}, {"hidden_units": [6], "net_dropout": 0.2}]
)
def test_the_logit_is_a_factorization_machine_and_an_mlp_of_the_same_fields(params):
    model = build_backbone("DeepFM", **params)
    batch = batch_of(model)
    e = fields_of(model, batch)
    expected = linear_literal(model.fm.lr_layer, batch) + mlp_literal(model.mlp, e.flatten(start_dim=1))[:, 0]
    for i, j in combinations(range(e.shape[1]), 2):
        expected = expected + (e[:, i] * e[:, j]).sum(dim=-1)
    assert_logit(model, batch, expected)
