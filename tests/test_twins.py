"""With `--zoo=DIR`: each backbone of ours is the same model as the FuxiCTR checkout's class of its name."""

import pytest
import torch

from fuxictr_llm.diagnosis.tiny import active_regularization, tiny_case, train
from fuxictr_llm.host.checkout import current_checkout
from fuxictr_llm.registry import find_backbone, find_own_backbone, own_backbone_names
from histories import padded_behind
from matrix_cells import predictions

pytestmark = pytest.mark.zoo


def pytest_generate_tests(metafunc):
    checkout, ours = current_checkout(), own_backbone_names()
    metafunc.parametrize("backbone", [name for name in ours if checkout and checkout.find(name)])


def test_weights_outputs_and_training_are_equal(backbone):
    own, theirs = find_own_backbone(backbone), find_backbone(backbone)
    assert own is not theirs
    # Adam makes steps of gradients that are nothing but rounding.
    case = tiny_case(theirs, optimizer="SGD", learning_rate=0.1, **active_regularization(own))
    ours, theirs, steps = case.build(own), case.build(), case.batches(rows=150, batch_size=64)
    if backbone == "DIEN":  # FuxiCTR's reads the padding of a history that is padded in front, ours does not
        steps = [padded_behind(batch) for batch in steps]
    assert_close(ours.state_dict(), theirs.state_dict(), atol=0)
    assert torch.allclose(predictions(ours, steps), predictions(theirs, steps), atol=1e-6)
    assert train(ours, steps) == pytest.approx(train(theirs, steps), abs=1e-6)
    assert_close(ours.state_dict(), theirs.state_dict(), atol=1e-6)
    assert torch.allclose(predictions(ours, steps), predictions(theirs, steps), atol=1e-6)


def assert_close(ours: dict, theirs: dict, atol: float) -> None:
    """The same names and shapes, and values that differ by rounding at most."""
    assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in theirs.items()}
    assert [key for key, value in ours.items() if not torch.allclose(value, theirs[key], rtol=0, atol=atol)] == []
