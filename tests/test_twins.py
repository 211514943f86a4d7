"""With `--zoo DIR`: each backbone of ours is the same model as the FuxiCTR checkout's class of its name."""

from pathlib import Path

import pytest
import torch

from fuxictr_llm.checkout import current_checkout
from fuxictr_llm.data.tiny import active_regularization, tiny_case, train
from fuxictr_llm.model_zoo import backbones
from fuxictr_llm.registry import find_backbone, find_own_backbone
from matrix_cells import predictions

pytestmark = pytest.mark.zoo


def pytest_generate_tests(metafunc):
    checkout, ours = current_checkout(), sorted(path.stem for path in Path(backbones.__path__[0]).glob("[!_]*.py"))
    metafunc.parametrize("backbone", [name for name in ours if checkout and checkout.find(name)])


def test_weights_outputs_and_training_are_equal(backbone):
    own = find_own_backbone(backbone)
    case = tiny_case(own, **active_regularization(own))
    ours, theirs = case.build(), case.build(find_backbone(backbone))
    assert type(theirs) is not type(ours)
    assert_equal(ours, theirs)
    steps = case.batches(rows=150, batch_size=64)
    assert torch.equal(predictions(ours, steps), predictions(theirs, steps))
    assert train(ours, steps) == train(theirs, steps)
    assert_equal(ours, theirs)
    assert torch.equal(predictions(ours, steps), predictions(theirs, steps))


def assert_equal(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """States of the same names, shapes and values."""
    some, others = ours.state_dict(), theirs.state_dict()
    assert some.keys() == others.keys()
    assert [key for key, value in some.items() if not torch.equal(value, others[key])] == []
