"""FFM against Juan et al., equation 4, with a linear term, written out."""

from itertools import combinations

import pytest

from literal import assert_logit, batch_of, build_backbone, fields_of, linear_literal
from support import small_feature_map


def test_a_field_meets_each_other_field_with_another_embedding():
    model = build_backbone("FFM")
    batch = batch_of(model)
    tables = [fields_of(model, batch, f"embedding_layers.{k}") for k in range(len(model.embedding_layers))]

    def embedding(field, other):
        return tables[other - 1 if other > field else other][:, field]

    expected = linear_literal(model.lr_layer, batch)
    for i, j in combinations(range(len(tables) + 1), 2):
        expected += (embedding(i, j) * embedding(j, i)).sum(dim=-1)
    assert_logit(model, batch, expected)


def test_one_field_meets_none():
    feature_map = small_feature_map("FM")
    for field in ("item", "price", "tags"):
        del feature_map.features[field]
    feature_map.num_fields = 1
    model = build_backbone("FFM", feature_map)
    batch = batch_of(model)
    assert_logit(model, batch, linear_literal(model.lr_layer, batch))


@pytest.mark.parametrize("task", ["regression", "binary_classification"])
def test_the_task_is_heeded(task):
    activation = build_backbone("FFM", task=task).output_activation
    assert type(activation).__name__ == {"regression": "Identity", "binary_classification": "Sigmoid"}[task]
