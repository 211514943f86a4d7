"""Looking up all columns at once trains what one lookup a column trains, whatever a model does with the embeddings."""

import copy
from contextlib import nullcontext
from types import MethodType

import pytest
import torch

from fuxictr_llm.registry import find_backbone, own_backbone_names
from fuxictr_llm.training.lookups import Lookup
from fuxictr_llm.training.optimizers import configure_optimizer
from fuxictr_llm.training.step import TrainingStep
from matrix_cells import case_of, cell, problem_of
from support import build, small_feature_map, steps_of

NAMES = own_backbone_names()


def with_rows(model):
    configure_optimizer(model, {"embedding_update": "rows"})
    return model


@pytest.fixture
def found(monkeypatch):
    """The lookups at once that were made."""
    made, of_columns = [], Lookup.of_columns
    keep = lambda *args: (made.append(of_columns(*args)), made[-1])[1]  # noqa: E731
    monkeypatch.setattr(Lookup, "of_columns", keep)
    return made


def trained(model, batches, at_once=True):
    """The weights and the optimizer's state after some steps."""
    step = TrainingStep(with_rows(model).train(), {"max_gradient_norm": 0.5})
    if not at_once:
        step._lookups = nullcontext
    torch.manual_seed(3)  # of dropout
    losses = [step(batch, index).item() for index, batch in enumerate(batches)]
    moments = [value for state in model.optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return {**model.state_dict(), **{str(index): value for index, value in enumerate(moments)}}, losses


def assert_alike(model, other, batches):
    (at_once, losses), (one_by_one, expected) = trained(model, batches), trained(other, batches, at_once=False)
    assert losses == pytest.approx(expected, rel=1e-5)
    for name, value in one_by_one.items():
        torch.testing.assert_close(
            at_once[name], value, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name} {text}"
        )


@pytest.mark.parametrize("name", NAMES)
def test_every_backbone_learns_the_same(name, found):
    case = case_of(find_backbone(name))
    pair = (case.build(optimizer="SGD", learning_rate=0.1) for _ in range(2))
    assert_alike(*pair, case.batches(rows=80, batch_size=32))
    assert any(found)


@pytest.mark.parametrize("name", ["DeepFM", "FinalMLP", "DIN", "MMoE"])
@pytest.mark.parametrize("method", ["AllTaps", "LLaCTR", "LLMEmb", "ELEC"])
def test_methods_learn_the_same(name, method):
    if problem_of(name, method):
        pytest.skip(problem_of(name, method))
    one = cell(name, method)
    assert_alike(*(one.build(optimizer="SGD", learning_rate=0.1) for _ in range(2)), one.batches())


def deep_fm(**changes):
    model = build("DeepFM", optimizer="adam", embedding_regularizer=0.1, **changes)
    return model, steps_of(model, "DeepFM")


def test_a_linear_part_looks_up_what_the_embeddings_do(found):
    model, batches = deep_fm()
    trained(model, batches[:1])
    embeddings, linear = found
    assert linear.looked_up is embeddings.looked_up and embeddings.weight.shape[1] > linear.weight.shape[1] == 1


def test_encoders_draw_their_random_numbers_in_the_same_order():
    model, batches = deep_fm()
    layer, specs = model.embedding_layer.embedding_layer, model.feature_map.features
    single, *_ = (name for name, spec in specs.items() if spec["type"] == "categorical")
    *_, other = (name for name in layer.embedding_layers if specs[name]["type"] != "categorical")
    assert [*specs].index(single) < [*specs].index(other)  # which no lookup at once has
    for name in (single, other):
        before = [layer.feature_encoders[name]] if name in layer.feature_encoders else []
        layer.feature_encoders[name] = torch.nn.Sequential(*before, torch.nn.Dropout(0.5))
    assert_alike(model, copy.deepcopy(model), batches)


class Changed(type(build("DeepFM"))):
    """Does with its embeddings what FuxiCTR's models may do."""

    def forward(self, inputs):
        outputs = super().forward(inputs)
        embeddings = self.embedding_layer.embedding_layer(self.get_inputs(inputs))
        outputs["y_pred"] = torch.sigmoid(outputs["y_pred"] + self.term(embeddings))
        return outputs


def leaves_one_out(self, embeddings):
    embeddings.pop(next(iter(embeddings)))
    return self.embedding_layer.embedding_layer.dict2tensor(embeddings, flatten_emb=True).sum(dim=1, keepdim=True)


def replaces_one(self, embeddings):
    name = next(iter(embeddings))
    embeddings[name] = 2 * embeddings[name]
    return self.embedding_layer.embedding_layer.dict2tensor(embeddings).sum(dim=(1, 2)).unsqueeze(1)


def reads_one_apart(self, embeddings):
    whole = self.embedding_layer.embedding_layer.dict2tensor(embeddings).sum(dim=(1, 2)).unsqueeze(1)
    return whole * next(iter(embeddings.values())).sum(dim=1, keepdim=True)


def reads_one_alone(self, embeddings):
    return next(iter(embeddings.values())).sum(dim=1, keepdim=True)


def reads_a_table(self, embeddings):
    return next(iter(self.embedding_layer.embedding_layer.embedding_layers.values())).weight.exp().mean()


TERMS = [leaves_one_out, replaces_one, reads_one_apart, reads_one_alone, reads_a_table]


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.__name__)
def test_what_a_model_does_with_single_columns_is_learned(term, alone):
    """In addition to all that DeepFM does with them, or alone."""
    model, batches = deep_fm()
    model.__class__, model.term = Changed, MethodType(term, model)
    if alone:
        model.fm.forward = lambda inputs, embeddings: torch.zeros(len(embeddings), 1)
        model.mlp.forward = lambda flat: torch.zeros(len(flat), 1)
    assert_alike(model, copy.deepcopy(model), batches)


def test_an_id_that_a_table_lacks_is_named_as_by_a_lookup_of_its_column():
    model, (batch, *_) = deep_fm()
    name = next(name for name, spec in small_feature_map("DeepFM").features.items() if spec["type"] == "categorical")
    ids = batch[name].clone()
    ids[0] = model.feature_map.features[name]["vocab_size"]
    with pytest.raises(IndexError, match="out of range"):
        TrainingStep(with_rows(model).train(), {})({**batch, name: ids}, 0)
