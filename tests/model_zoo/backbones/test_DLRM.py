"""DLRM against Naumov et al., section 2, written out."""

from itertools import combinations
from types import SimpleNamespace

import pytest
import torch

from literal import assert_logit, batch_of, build_backbone, mlp_literal
from support import small_feature_map


@pytest.mark.parametrize("numeric", [0, 1, 2])
@pytest.mark.parametrize("interaction_op", ["dot", "cat"])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_the_logit_is_an_mlp_of_dot_products_and_the_numeric_fields_vector(interaction_op, numeric, batch_norm):
    feature_map = small_feature_map("DLRM")
    price = feature_map.features.pop("price")
    feature_map.features.update({f"price{i}": dict(price) for i in range(numeric)})
    feature_map.num_fields = feature_map.get_num_fields()
    units = {"top_mlp_units": [6, 5], "bottom_mlp_units": [7], "top_mlp_activations": "tanh"}
    model = build_backbone("DLRM", feature_map, interaction_op=interaction_op, batch_norm=batch_norm, **units)
    batch = batch_of(model)
    vectors = list(model.embedding_layer(model.get_inputs(batch)).unbind(dim=1))
    assert len(vectors) == 4
    if numeric:
        dense = mlp_literal(model.bottom_mlp, torch.stack([batch[f"price{i}"] for i in range(numeric)], dim=1))
        vectors.append(dense)
    seen = vectors
    if interaction_op == "dot":
        seen = [(left * right).sum(dim=-1, keepdim=True) for left, right in combinations(vectors, 2)]
        seen += [dense] if numeric else []
    before_activation = SimpleNamespace(mlp=model.top_mlp.mlp[:-1])
    assert_logit(model, batch, mlp_literal(before_activation, torch.cat(seen, dim=-1)))
    as_columns = {name: value.double()[:, None] if "price" in name else value for name, value in batch.items()}
    assert torch.equal(model.forward(as_columns)["y_pred"], model.forward(batch)["y_pred"])


def only_numbers():
    feature_map = small_feature_map("DLRM")
    feature_map.features = {"price": feature_map.features["price"]}
    feature_map.num_fields = 1
    return feature_map


@pytest.mark.parametrize(
    "feature_map, params, message",
    [
        (None, {"interaction_op": "sum"}, "interaction_op must be one of dot, cat .got 'sum'."),
        (
            None,
            {"bottom_mlp_activations": ["relu"]},
            r"bottom_mlp_activations must be one for all layers .got \['relu'\].",
        ),
        (only_numbers(), {}, "DLRM needs a field that is not numeric .got price."),
    ],
)
def test_wrong_arguments_are_named(feature_map, params, message):
    with pytest.raises(ValueError, match=message):
        build_backbone("DLRM", feature_map, **params)
