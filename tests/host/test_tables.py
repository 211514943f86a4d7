"""More rows for embedding tables: all tables of a column in every backbone, and nothing changed by a trial."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fuxictr.pytorch.torch_utils import seed_everything
from torch import nn

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.host.tables import add_rows, check_tables, describe_rows, tables_of
from fuxictr_llm.registry import find_backbone
from support import BACKBONES, batches, params, predictions, small_feature_map, train

COLUMN = "item"


def trained(backbone, usage=None, freeze=False, shared=False, **changes):
    feature_map = small_feature_map(backbone, data_dir=".")
    spec = feature_map.features[COLUMN]
    if usage:
        keys = [f"v{index}" for index in range(1, 19)]
        vectors = np.random.default_rng(0).normal(size=(18, 4)).astype(np.float32)
        np.savez("vectors.npz", key=np.array(keys), value=vectors)
        vocabulary = {COLUMN: {key: index for index, key in enumerate(keys, 1)}, "other": {"": 1}}
        Path("feature_vocab.json").write_text(json.dumps(vocabulary))
        spec |= {"pretrained_emb": "vectors.npz", "pretrain_dim": 4, "pretrain_usage": usage}
        spec |= {"freeze_emb": freeze, "oov_idx": 19}
    if shared:
        feature_map.features["tags"] |= {"vocab_size": 20, "share_embedding": COLUMN}
    seed_everything(1)
    model = find_backbone(backbone)(feature_map, **params(backbone, **changes))
    train(model, batches(backbone))
    return model.eval()


def add_copy_of(model, row, columns, count=3):
    """More rows, the last of which is a copy of one."""
    size = model.feature_map.features[COLUMN]["vocab_size"]
    for table in tables_of(model, columns, size):
        rows = torch.zeros(count, table.weight.shape[1])
        rows[-1] = table.weight[row].detach()
        add_rows(table, rows)
    describe_rows(model.feature_map, columns, size, count)
    return size + count - 1


@pytest.mark.parametrize("backbone", [*BACKBONES, "LR", "FFM", "DLRM", "AutoInt", "xDeepFM"])
def test_a_copied_row_predicts_as_its_original_in_every_backbone(backbone):
    settings = backbone if backbone in (*BACKBONES, "LR") else None
    model = trained(backbone) if settings else trained_with_defaults(backbone)
    steps = batches(backbone if settings else "DeepFM")
    for batch in steps:
        batch[COLUMN] = torch.where(batch[COLUMN] == 19, 5, batch[COLUMN])
    before = predictions(model, steps)
    new = add_copy_of(model, 5, [COLUMN])
    assert torch.equal(predictions(model, steps), before)
    moved = [{**batch, COLUMN: torch.where(batch[COLUMN] == 5, new, batch[COLUMN])} for batch in steps]
    assert any((batch[COLUMN] == new).any() for batch in moved)
    assert torch.equal(predictions(model, moved), before)


def trained_with_defaults(backbone):
    settings = {key: value for key, value in params("FM").items() if key != "regularizer"} | {"model_id": backbone}
    seed_everything(1)
    model = find_backbone(backbone)(small_feature_map("DeepFM"), **settings)
    train(model, batches("DeepFM"))
    return model.eval()


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("usage", ["init", "sum", "concat"])
def test_a_copied_row_beside_given_vectors(usage, freeze):
    model = trained("DeepFM", usage=usage, freeze=freeze)
    steps = batches()
    before = predictions(model, steps)
    new = add_copy_of(model, 5, [COLUMN])
    moved = [{**batch, COLUMN: torch.where(batch[COLUMN] == 5, new, batch[COLUMN])} for batch in steps]
    assert torch.equal(predictions(model, moved), before)
    layer = model.embedding_layer.embedding_layer.embedding_layers[COLUMN]
    assert layer.pretrain_embedding.weight.requires_grad != freeze
    assert (
        model.feature_map.features[COLUMN] | {"vocab_size": 23, "oov_idx": 22, "first_cold_id": 20}
        == (model.feature_map.features[COLUMN])
    )


def test_columns_that_share_an_embedding():
    model = trained("DeepFM", shared=True)
    names = {table.name: table.columns for table in tables_of(model, [COLUMN, "tags"], 20)}
    assert sorted(names.values()) == [("item",), ("item", "tags"), ("tags",)]  # the linear part shares nothing
    steps = batches()
    before = predictions(model, steps)
    new = add_copy_of(model, 5, [COLUMN, "tags"])
    moved = [
        {**batch, **{name: torch.where(batch[name] == 5, new, batch[name]) for name in (COLUMN, "tags")}}
        for batch in steps
    ]
    assert torch.equal(predictions(model, moved), before)
    assert {model.feature_map.features[name]["vocab_size"] for name in (COLUMN, "tags")} == {23}


def test_modules_that_share_a_weight_go_on_sharing_it():
    model = trained("DeepFM")
    layers = model.embedding_layer.embedding_layer.embedding_layers
    layers["tags"] = torch.nn.Embedding(20, layers[COLUMN].embedding_dim, padding_idx=0)
    layers["tags"].weight = layers[COLUMN].weight
    model.output = torch.nn.Embedding(20, layers[COLUMN].embedding_dim)  # of no column
    model.output.weight = layers[COLUMN].weight
    check_tables(model, {COLUMN: [COLUMN]}, {COLUMN: 3})
    assert layers["tags"].weight is layers[COLUMN].weight is model.output.weight and len(model.output.weight) == 20
    assert sorted(len(table.embeddings) for table in tables_of(model, [COLUMN], 20)) == [1, 3]
    new = add_copy_of(model, 5, [COLUMN])
    assert layers["tags"].weight is layers[COLUMN].weight is model.output.weight
    assert torch.equal(layers["tags"].weight[new], layers["tags"].weight[5])
    assert layers["tags"].num_embeddings == model.output.num_embeddings == len(model.output.weight) == new + 1


@pytest.mark.parametrize("usage", [None, "sum"])
def test_a_trial_leaves_the_model_as_it_was(usage):
    model = trained("DeepFM", usage=usage).train()
    twin, state = copy.deepcopy(model), torch.get_rng_state()
    weights = {name: id(parameter) for name, parameter in model.named_parameters()}
    features = copy.deepcopy(model.feature_map.features)
    check_tables(model, {COLUMN: [COLUMN]}, {COLUMN: 7})
    assert torch.equal(torch.get_rng_state(), state) and model.training and model.feature_map.features == features
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == weights
    assert train(model, batches()) == train(twin, batches())
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())


def test_tables_that_are_not_found_are_one_line():
    model = trained("DeepFM")
    with pytest.raises(UserError, match="DeepFM has no table of embeddings for column 'price' .* is a Linear without"):
        tables_of(model, ["price"], 20)
    with pytest.raises(UserError, match="has no table .* for column 'colour' .*no FeatureEmbeddingDict with that"):
        tables_of(model, ["colour"], 20)

    class Own(type(model)):
        def forward(self, inputs):
            self.own(inputs[COLUMN])
            return super().forward(inputs)

    model.own, model.__class__ = nn.Embedding(20, 1), Own
    with pytest.raises(UserError, match="Own takes no new ids of 'item' \\(.*\\): it has a table of its own"):
        check_tables(model, {COLUMN: [COLUMN]}, {COLUMN: 2})
