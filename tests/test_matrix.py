"""Every method on every backbone: the five invariants that `fuxictr_llm/enhancement.py` states.

`python -m pytest --zoo=DIR` runs them over the models of a FuxiCTR checkout instead of those of our zoo.
"""

import copy
import math
import pickle

import pytest
import torch

from fuxictr_llm.checkout import current_checkout
from fuxictr_llm.data.tiny import train
from fuxictr_llm.registry import backbone_names
from matrix_cells import METHODS, cell, predictions, problem_of, some_rows, trained

every_method = pytest.mark.parametrize("method", METHODS)
# LLMEmb is the plain backbone with vectors for a column; it has nothing to switch off and nothing of its own.
OF_TERMS = [method for method in METHODS if method != "LLMEmb"]


pytestmark = pytest.mark.zoo


def pytest_generate_tests(metafunc):
    checkout = current_checkout()
    metafunc.parametrize("backbone", checkout.names() if checkout else backbone_names())


@pytest.fixture(autouse=True)
def _only_what_works(backbone, request):
    """A method says what it misses of a backbone; and not every class of a checkout runs."""
    reason = problem_of(backbone, request.node.callspec.params.get("method", "EveryTap"))
    if reason:
        assert "shows none" in reason or current_checkout(), reason
        pytest.skip(reason)


@every_method
def test_off_it_leaves_weights_and_training_bit_identical(backbone, method):
    off = cell(backbone, method, on=False)
    plain, idle, steps = off.plain(), off.build(), off.batches()
    assert_equal_states(plain.state_dict(), idle.backbone_state_dict())
    assert train(plain, steps) == train(idle, steps)
    assert_equal_states(plain.state_dict(), idle.backbone_state_dict())
    assert all(parameter.grad is None for parameter in idle.enhancement.parameters())
    assert torch.equal(predictions(plain, steps), predictions(idle, steps))


@pytest.mark.parametrize("method", OF_TERMS)
def test_on_it_changes_training_and_every_parameter_of_it_moves(backbone, method):
    model, before, losses = trained(backbone, method)
    assert all(map(math.isfinite, losses))
    assert losses != train(cell(backbone, method).plain(), cell(backbone, method).batches())
    for key, value in model.enhancement.named_parameters():
        assert value.isfinite().all() and not torch.equal(value, before[key]), key


@every_method
def test_the_backbone_part_loads_strictly_into_the_plain_backbone(backbone, method):
    model, _, _ = trained(backbone, method)
    plain = cell(backbone, method).plain(seed=5)
    plain.load_state_dict(model.backbone_state_dict(), strict=True)
    assert_equal_states(plain.state_dict(), model.backbone_state_dict())


@every_method
def test_copies_and_saved_states_predict_the_same_and_go_their_own_way(backbone, method, tmp_path):
    model, _, _ = trained(backbone, method)
    steps, loaded = cell(backbone, method).batches(), cell(backbone, method).build(seed=9)
    model.save_weights(tmp_path / "a.model")
    loaded.load_weights(tmp_path / "a.model")
    expected, state = predictions(model, steps), copy.deepcopy(model.state_dict())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), loaded):
        assert type(twin) is type(model) and torch.equal(predictions(twin, steps), expected)
        if hasattr(twin.enhancement, "learn_from"):  # a copy has no teacher
            twin.enhancement.teacher = model.enhancement.teacher
        train(twin, steps[:1])
        assert not torch.equal(predictions(twin, steps), expected)
        assert torch.equal(predictions(model, steps), expected)
        assert_equal_states(model.state_dict(), state)


@pytest.mark.parametrize("method", OF_TERMS)
def test_nothing_is_computed_at_inference_for_the_loss_alone(backbone, method, monkeypatch):
    model, _, _ = trained(backbone, method)
    steps = cell(backbone, method).batches()
    expected = predictions(model, steps)

    def fail(*_):
        raise AssertionError("this is of the loss")

    monkeypatch.setattr(model.enhancement, "loss", fail)
    for module in (getattr(model.enhancement, name, None) for name in ("fre", "hint")):
        if module is not None:
            monkeypatch.setattr(module, "forward", fail)
    assert torch.equal(predictions(model, steps), expected) and "seen" not in model.forward(steps[0])


@every_method
def test_a_row_alone_is_predicted_as_among_others_and_no_row_gives_no_prediction(backbone, method):
    model, _, _ = trained(backbone, method)
    batch = cell(backbone, method).batches()[0]
    whole = predictions(model, [batch])
    last = some_rows(batch, slice(-1, None))
    assert torch.allclose(predictions(model, [last]), whole[-1:], atol=1e-6)
    empty = some_rows(batch, slice(0))
    try:
        predictions(cell(backbone, method).plain(), [empty])
    except RuntimeError:  # FuxiCTR's layer of xDeepFM
        return
    assert predictions(model, [empty]).shape == whole[:0].shape


@every_method
def test_a_last_batch_of_one_row_trains_where_the_backbone_can(backbone, method):
    (batch,) = cell(backbone, method).case.batches(rows=1)
    try:
        train(cell(backbone, method).plain(), [batch])
    except ValueError:  # BatchNorm
        return
    model = cell(backbone, method).build()
    assert math.isfinite(*train(model, [batch])) and predictions(model, [batch]).isfinite().all()


def test_taps_are_shown_the_declared_shapes(backbone):
    model, _, _ = trained(backbone, "EveryTap")
    train(model, cell(backbone, "EveryTap").batches()[:1])
    anatomy, shapes, rows = model.enhancement.anatomy, model.enhancement.shapes, 32
    names = [name for name in model.feature_map.features if name in anatomy.fields]
    assert list(anatomy.fields) == names and len(anatomy.dims) == len(names)
    expected = {"inputs": rows, "loss": (rows, len(model.feature_map.labels))}
    if anatomy.fields:
        expected |= {"embeddings": (rows, len(names), anatomy.embedding_dim), "logit": expected["loss"]}
    if anatomy.widths:
        expected |= {"representation": (rows, sum(anatomy.widths))}
    assert shapes == expected


def assert_equal_states(some: dict, others: dict) -> None:
    assert some.keys() == others.keys()
    assert [key for key, value in some.items() if not torch.equal(value, others[key])] == []
