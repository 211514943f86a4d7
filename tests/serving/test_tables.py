"""A served model looks up all columns at once, and predicts what it predicts column by column, bit by bit."""

import copy

import pytest
import torch

from fuxictr_llm.host.batches import synthetic_batch
from fuxictr_llm.registry import find_backbone, own_backbone_names
from fuxictr_llm.serving import tables
from fuxictr_llm.serving.load import ServedModel
from matrix_cells import case_of
from support import build, trained


def assert_same(model, batches, joins=True):
    """Predictions of a model as it is, and served."""
    served = ServedModel(copy.deepcopy(model), {})
    assert bool(served._tables._blocks) == joins
    model.eval()
    with torch.inference_mode():
        for batch in batches:
            expected = model.forward(batch)
            with served._tables.in_use():
                found = served.model.forward(batch)
            assert all(torch.equal(found[key], expected[key]) for key in expected if torch.is_tensor(expected[key]))
    return served


@pytest.mark.parametrize("name", own_backbone_names())
def test_every_backbone_predicts_the_same(name, monkeypatch):
    case, found, look_up = case_of(find_backbone(name)), [], tables.JoinedTables.look_up
    monkeypatch.setattr(
        tables.JoinedTables, "look_up", lambda self, columns: (found.extend(made := [*look_up(self, columns)]), made)[1]
    )
    batches = case.batches(rows=40, batch_size=32)
    model = case.build()
    served = assert_same(model, [*batches, {key: column[:1] for key, column in batches[0].items()}])
    assert found and all(len(part.names) > 1 for part in found)
    for name, value in model.state_dict().items():
        assert torch.equal(value, served.model.state_dict()[name])


def test_columns_of_any_integers_are_looked_up():
    model = trained("DeepFM")
    served = ServedModel(model, {})
    batch = {name: column for name, column in synthetic_batch(model.feature_map).items() if name in served.fields}
    expected = served.predict(batch)
    for dtype in (torch.int32, torch.uint8, torch.int16):
        ids = {name: column.to(dtype) for name, column in batch.items() if not column.is_floating_point()}
        assert len(ids) > 1 and (served.predict(batch | ids) == expected).all()


def test_large_tables_stay_where_they_are(monkeypatch):
    monkeypatch.setattr(tables, "ALONE_FROM", 0)
    case = case_of(find_backbone("DeepFM"))
    model = case.build()
    served = assert_same(model, case.batches(rows=40, batch_size=32), joins=False)
    places = {weight.untyped_storage().data_ptr() for weight in served.model.parameters()}
    assert len(places) == len([*served.model.parameters()])


@pytest.mark.parametrize("shared", [False, True])
def test_a_table_with_fewer_rows_than_one_of_its_columns_has_ids_is_left_alone(shared):
    model = build("DeepFM")
    layer = model.embedding_layer.embedding_layer
    modules, specs = layer.embedding_layers, layer._feature_map.features
    first, second, *_ = (name for name, module in modules.items() if isinstance(module, torch.nn.Embedding))
    if shared:
        modules[second] = modules[first]
    name = second if shared else first
    specs[name]["vocab_size"] = modules[name].num_embeddings + 1
    joined = [table for block in ServedModel(model, {})._tables._blocks for table in block.starts]
    assert joined and not any(table is modules[first].weight for table in joined)
