"""DNN against Covington et al., section 4, written out."""

import pytest

from literal import assert_logit, batch_of, build_backbone, fields_of, mlp_literal
from support import small_feature_map


@pytest.mark.parametrize(
    "params", [{}, {"batch_norm": True, "net_dropout": 0.2, "hidden_activations": ["tanh", "relu"]}]
)
def test_the_logit_is_an_mlp_of_the_fields_side_by_side(params):
    model = build_backbone("DNN", small_feature_map("DNN"), **{"hidden_units": [6, 5], **params})
    batch = batch_of(model)
    assert_logit(model, batch, mlp_literal(model.mlp, fields_of(model, batch).flatten(start_dim=1)))
