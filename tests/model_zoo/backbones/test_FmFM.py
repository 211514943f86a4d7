"""FmFM against Sun et al., equation 6, written out."""

from itertools import combinations

import pytest

from literal import assert_logit, batch_of, build_backbone, fields_of, linear_literal


@pytest.mark.parametrize("field_interaction_type", ["matrixed", "vectorized"])
def test_the_logit_maps_one_field_of_each_pair(field_interaction_type):
    model = build_backbone("FmFM", field_interaction_type=field_interaction_type)
    batch = batch_of(model)
    e = fields_of(model, batch)
    expected = linear_literal(model.lr_layer, batch)
    for weight, (i, j) in zip(model.interaction_weight, combinations(range(e.shape[1]), 2), strict=True):
        left = e[:, i] @ weight if weight.dim() == 2 else e[:, i] * weight
        expected += (left * e[:, j]).sum(dim=-1)
    assert_logit(model, batch, expected)
