"""PNN against Qu et al., equations 1-3 with inner products, written out."""

from itertools import combinations

import pytest
import torch

from literal import assert_logit, batch_of, build_backbone, fields_of, mlp_literal
from support import small_feature_map


@pytest.mark.parametrize("params", [{"hidden_units": [6, 5]}, {"hidden_units": [6], "batch_norm": True}])
def test_the_first_layer_sees_the_fields_and_the_products_of_their_pairs(params):
    model = build_backbone("PNN", small_feature_map("PNN"), **params)
    batch = batch_of(model)
    e = fields_of(model, batch)
    products = [(e[:, i] * e[:, j]).sum(dim=-1) for i, j in combinations(range(e.shape[1]), 2)]
    seen = torch.cat([*e.unbind(dim=1), torch.stack(products, dim=-1)], dim=-1)
    assert_logit(model, batch, mlp_literal(model.dnn, seen))


def test_other_products_are_named():
    with pytest.raises(ValueError, match="^product_type must be inner .got 'outer'.$"):
        build_backbone("PNN", product_type="outer")
