"""NFM against He and Chua, equations 3-7, written out."""

from itertools import combinations

import pytest
import torch

from literal import assert_logit, batch_of, build_backbone, fields_of, linear_literal, mlp_literal


@pytest.mark.parametrize("params", [{"hidden_units": []}, {"hidden_units": [6, 5], "batch_norm": True}])
def test_the_logit_is_an_mlp_of_the_pooled_products_and_a_linear_part(params):
    model = build_backbone("NFM", **params)
    batch = batch_of(model)
    e = fields_of(model, batch)
    pooled = torch.zeros_like(e[:, 0])
    for i, j in combinations(range(e.shape[1]), 2):
        pooled = pooled + e[:, i] * e[:, j]
    assert_logit(model, batch, linear_literal(model.lr_layer, batch) + mlp_literal(model.dnn, pooled)[:, 0])
