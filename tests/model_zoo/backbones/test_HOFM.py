"""HOFM against Blondel et al., equation 2, written out."""

from itertools import combinations

import pytest
import torch

from literal import assert_logit, batch_of, build_backbone, fields_of, linear_literal


@pytest.mark.parametrize(
    "params",
    [{"order": 2}, {"order": 3, "embedding_dim": [4, 3]}, {"order": 4}, {"order": 4, "reuse_embedding": True}],
)
def test_the_logit_sums_the_products_of_all_sets_of_fields(params):
    model = build_backbone("HOFM", **params)
    batch = batch_of(model)
    expected = linear_literal(model.lr_layer, batch)
    for order in range(2, params["order"] + 1):
        shared = params.get("reuse_embedding", False)
        e = fields_of(model, batch, "embedding_layer" if shared else f"embedding_layers.{order - 2}")
        for fields in combinations(range(e.shape[1]), order):
            expected += torch.stack([e[:, i] for i in fields]).prod(dim=0).sum(dim=-1)
    assert_logit(model, batch, expected)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"order": 1}, r"^order must be an integer from 2 to 4, the number of fields \(got 1\)$"),
        ({"order": 5}, r"^order must be .*\(got 5\)$"),
        ({"order": 2.5}, r"^order must be .*\(got 2.5\)$"),
        ({"embedding_dim": [4]}, r"^embedding_dim must be an integer or a list of 2, order - 1 \(got \[4\]\)$"),
        ({"embedding_dim": [4, 4], "reuse_embedding": True}, r"^embedding_dim must be one integer .*\(got \[4, 4\]\)$"),
    ],
)
def test_arguments_that_fit_no_model_are_named(params, message):
    with pytest.raises(ValueError, match=message):
        build_backbone("HOFM", **params)
