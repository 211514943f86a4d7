"""FwFM against Pan et al., equation 5 with the linear terms of section 3.2, written out."""

from itertools import combinations

import pytest

from literal import assert_logit, batch_of, build_backbone, fields_of
from support import small_feature_map


@pytest.mark.parametrize("linear_type", ["LW", "FeLV", "FiLV"])
def test_the_logit_weighs_each_pair_of_fields(linear_type):
    model = build_backbone("FwFM", small_feature_map("FM" if linear_type == "LW" else "FwFM"), linear_type=linear_type)
    batch = batch_of(model)
    e = fields_of(model, batch)
    fields = range(e.shape[1])
    expected = model.interaction_weight.bias.repeat(len(e))
    for weight, (i, j) in zip(model.interaction_weight.weight[0], combinations(fields, 2), strict=True):
        expected = expected + weight * (e[:, i] * e[:, j]).sum(dim=-1)
    for i in fields:
        if linear_type == "LW":
            term = fields_of(model, batch, "linear_weight_layer")[:, i]
        elif linear_type == "FeLV":
            term = e[:, i] * fields_of(model, batch, "linear_weight_layer")[:, i]
        else:
            term = e[:, i] * model.linear_weight_layer.weight[0, 4 * i : 4 * i + 4]
        expected = expected + term.sum(dim=-1)
    assert_logit(model, batch, expected)
