"""LR against `w_0 + sum_i w_i x_i`, written out."""

import pytest

from literal import assert_logit, batch_of, build_backbone, linear_literal


def test_the_logit_is_a_weight_per_feature_and_a_bias():
    model = build_backbone("LR")
    batch = batch_of(model)
    assert_logit(model, batch, linear_literal(model.lr_layer, batch))


@pytest.mark.parametrize("name", ["LR", "FFM", "HOFM", "AFM", "NFM", "WideDeep", "xDeepFM"])
def test_a_linear_part_has_a_bias_where_no_other_part_has_one(name):
    assert ("lr_layer.bias" in build_backbone(name).state_dict()) == (name not in ("NFM", "WideDeep", "xDeepFM"))
