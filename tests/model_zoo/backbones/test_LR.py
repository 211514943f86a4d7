"""LR against `w_0 + sum_i w_i x_i`, written out."""

from literal import assert_logit, batch_of, build_backbone, linear_literal


def test_the_logit_is_a_weight_per_feature_and_a_bias():
    model = build_backbone("LR")
    batch = batch_of(model)
    assert_logit(model, batch, linear_literal(model.lr_layer, batch))
