"""FM against Rendle, equation 1, written out."""

from itertools import combinations

from literal import assert_logit, batch_of, build_backbone, fields_of, linear_literal


def test_the_logit_is_the_linear_part_and_the_inner_products_of_all_pairs():
    model = build_backbone("FM")
    batch = batch_of(model)
    e = fields_of(model, batch)
    expected = linear_literal(model.fm.lr_layer, batch)
    for i, j in combinations(range(e.shape[1]), 2):
        expected += (e[:, i] * e[:, j]).sum(dim=-1)
    assert_logit(model, batch, expected)
