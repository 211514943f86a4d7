"""Every method on every backbone: the five invariants that `fuxictr_llm/enhancement.py` states.

`python -m pytest --zoo=DIR` runs them over the models of a FuxiCTR checkout instead of those of our zoo.
"""

import copy
import math
import pickle

import pytest
import torch

from fuxictr_llm.diagnosis.tiny import train
from fuxictr_llm.host.checkout import current_checkout
from fuxictr_llm.registry import own_backbone_names
from matrix_cells import METHODS, PATHS, cell, predictions, problem_of, some_rows, trained

# One of the models that the fuxictr wheel installs, all of which take the same tuples as batches.
WHEEL = "SIM"
# LLMEmb is the plain backbone with vectors for a column; it has nothing to switch off and nothing of its own.
OF_TERMS = [method for method in METHODS if method != "LLMEmb"]


pytestmark = pytest.mark.zoo


def pytest_generate_tests(metafunc):
    """`AllTaps` on every backbone; our methods too where they train, else on PATHS. Of a checkout, all cells."""
    checkout = current_checkout()
    backbones = checkout.names() if checkout else [*own_backbone_names(), WHEEL]
    if "method" not in metafunc.fixturenames:
        metafunc.parametrize("backbone", backbones)
        return
    everywhere = checkout or metafunc.function is test_on_it_changes_training_and_every_parameter_of_it_moves
    methods = OF_TERMS if metafunc.function in OF_TERMS_ALONE else METHODS
    cells = [(name, method) for name in backbones for method in methods]
    cells = [cell for cell in cells if everywhere or cell[1] == "AllTaps" or cell[0] in PATHS]
    metafunc.parametrize(("backbone", "method"), cells)


@pytest.fixture(autouse=True)
def _only_what_works(backbone, request):
    """A method says what it misses of a backbone; and not every class of a checkout runs."""
    reason = problem_of(backbone, request.node.callspec.params.get("method", "AllTaps"))
    if reason:
        assert "shows none" in reason or current_checkout(), reason
        pytest.skip(reason)


def test_off_it_leaves_weights_and_training_bit_identical(backbone, method):
    off = cell(backbone, method, on=False)
    plain, random_numbers = off.plain(), torch.get_rng_state()
    idle, steps = off.build(), off.batches()
    assert torch.equal(torch.get_rng_state(), random_numbers)
    assert_equal_states(plain.state_dict(), idle.backbone_state_dict())
    assert train(plain, steps) == train(idle, steps)
    assert_equal_states(plain.state_dict(), idle.backbone_state_dict())
    assert all(parameter.grad is None for parameter in idle.enhancement.parameters())
    assert torch.equal(predictions(plain, steps), predictions(idle, steps))


def test_on_it_changes_training_and_every_parameter_of_it_moves(backbone, method):
    model, before, losses = trained(backbone, method)
    assert all(map(math.isfinite, losses))
    assert losses != train(cell(backbone, method).plain(), cell(backbone, method).batches())
    for key, value in model.enhancement.named_parameters():
        assert value.isfinite().all() and not torch.equal(value, before[key]), key


def test_the_backbone_part_loads_strictly_into_the_plain_backbone(backbone, method):
    model, _, _ = trained(backbone, method)
    plain = cell(backbone, method).plain(seed=5)
    plain.load_state_dict(model.backbone_state_dict(), strict=True)
    assert_equal_states(plain.state_dict(), model.backbone_state_dict())


def test_copies_and_saved_states_predict_the_same_and_go_their_own_way(backbone, method, tmp_path):
    unless_the_plain_one_fails(lambda: copy.deepcopy(cell(backbone, method).plain()))
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
    assert torch.equal(predictions(model, steps), expected) and "trace" not in model.forward(steps[0])


def test_a_row_alone_is_predicted_as_among_others(backbone, method):
    model, _, _ = trained(backbone, method)
    batch = cell(backbone, method).batches()[0]
    last = some_rows(batch, slice(-1, None))
    unless_the_plain_one_fails(lambda: predictions(cell(backbone, method).plain(), [last]))
    assert torch.allclose(predictions(model, [last]), predictions(model, [batch])[-1:], atol=1e-6)


def test_no_row_gives_no_prediction(backbone, method):
    model, _, _ = trained(backbone, method)
    empty = some_rows(cell(backbone, method).batches()[0], slice(0))
    unless_the_plain_one_fails(lambda: predictions(cell(backbone, method).plain(), [empty]))
    assert predictions(model, [empty]).shape == (0, len(model.feature_map.labels))


def test_a_batch_of_one_row_trains(backbone, method):
    found = cell(backbone, method)
    (batch,) = found.case.batches(rows=1)
    changes = {"batch_norm": False} if "batch_norm" in found.case.settings else {}  # BatchNorm cannot
    unless_the_plain_one_fails(lambda: train(found.plain(**changes), [batch]))
    model = found.build(**changes)
    assert math.isfinite(*train(model, [batch])) and predictions(model, [batch]).isfinite().all()


def test_taps_are_shown_the_declared_shapes(backbone):
    model, _, _ = trained(backbone, "AllTaps")
    train(model, cell(backbone, "AllTaps").batches()[:1])
    anatomy, shapes, rows = model.enhancement.anatomy, model.enhancement.shapes, 32
    names = [name for name in model.feature_map.features if name in anatomy.fields]
    assert list(anatomy.fields) == names and len(anatomy.dims) == len(names)
    labels = (rows, len(model.feature_map.labels))
    expected = {"inputs": rows, "logit": labels}
    if anatomy.fields:
        expected |= {"embeddings": (rows, len(names), anatomy.embedding_dim), "loss": labels}
    if anatomy.widths:
        expected |= {"representation": (rows, sum(anatomy.widths))}
    assert shapes == expected


OF_TERMS_ALONE = (
    test_on_it_changes_training_and_every_parameter_of_it_moves,
    test_nothing_is_computed_at_inference_for_the_loss_alone,
)


def assert_equal_states(some: dict, others: dict) -> None:
    assert some.keys() == others.keys()
    assert [key for key, value in some.items() if not torch.equal(value, others[key])] == []


def unless_the_plain_one_fails(action) -> None:
    """Skips a test of what FuxiCTR's own layers, or a checkout's class, cannot."""
    try:
        action()
    except Exception as error:
        pytest.skip(f"the plain backbone fails as well: {str(error).splitlines()[0][:70]}")
