"""WideDeep against Cheng et al., equation 3, written out."""

import pytest

from literal import assert_logit, batch_of, build_backbone, linear_literal, mlp_literal
from support import small_feature_map


@pytest.mark.parametrize("dims", [{}, {"user": 3, "item": 5}])
@pytest.mark.parametrize("params", [{"hidden_units": [6, 5]}, {"hidden_units": [6], "batch_norm": True}])
def test_the_logit_is_a_linear_part_and_an_mlp_of_the_fields_side_by_side(params, dims):
    feature_map = small_feature_map("FM")
    for field, dim in dims.items():
        feature_map.features[field]["embedding_dim"] = dim
    model = build_backbone("WideDeep", feature_map, **params)
    batch = batch_of(model)
    flat = model.embedding_layer(model.get_inputs(batch), flatten_emb=True)
    assert flat.shape[1] == sum(dims.get(field, 4) for field in ("user", "item", "price", "tags"))
    assert_logit(model, batch, linear_literal(model.lr_layer, batch) + mlp_literal(model.dnn, flat)[:, 0])
