"""Each backbone of ours is FuxiCTR's class of its name: recorded names, weights, predictions and steps of training.

What was recorded, and from which FuxiCTR, stands in `tests/golden`; `make_golden.py` makes it.
"""

import json

import numpy as np
import pytest

from fuxictr_llm.diagnosis.tiny import constructor_defaults
from fuxictr_llm.registry import find_own_backbone, own_backbone_names
from support_golden import arrays, build, description, in_batches, names_and_shapes, observe

TOLERANCE = 1e-6
# A logarithm of what is nearly zero makes more of how a machine rounds.
WITH_LOGARITHMS = {"AFN", "EulerNet"}


def test_every_backbone_of_ours_that_fuxictr_has_is_recorded():
    assert own_backbone_names() == list(description()["classes"])


@pytest.mark.parametrize("name", description()["classes"])
def test_defaults(name):
    theirs = dict(description()["classes"][name]["defaults"])
    ours = constructor_defaults(find_own_backbone(name))
    assert ours.pop("model_id") is None  # the class's name, as theirs but for FuxiCTR's "SharedBottom"
    assert theirs.pop("model_id") in (name, "SharedBottom")
    if name == "LR":  # every backbone of ours takes it
        assert ours.pop("embedding_dim") == 10
    assert json.loads(json.dumps(ours)) == theirs


@pytest.mark.parametrize("case_id", description()["cases"])
def test_names_weights_predictions_and_training(case_id):
    case, expected = description()["cases"][case_id], arrays()[case_id]
    cls = find_own_backbone(case["model"])
    model = build(cls, description()["feature_maps"][case["feature_map"]], case["settings"])
    assert names_and_shapes(model).tolist() == expected["weights"].tolist()
    observed = observe(model, in_batches(arrays()[case["feature_map"]]))
    assert observed.keys() == expected.keys()
    tolerance = 20 * TOLERANCE if case["model"] in WITH_LOGARITHMS else TOLERANCE
    assert_close(observed, expected, ["initial_weights"], TOLERANCE)
    assert_close(
        observed, expected, ["initial_predictions", "losses", "trained_weights", "trained_predictions"], tolerance
    )


def assert_close(observed: dict, expected: dict, names: list[str], tolerance: float) -> None:
    for name in names:
        np.testing.assert_allclose(observed[name], expected[name], rtol=tolerance, atol=tolerance, err_msg=name)


def test_the_only_other_initial_weights_are_those_that_fuxictr_forgets_to_initialize():
    """It leaves a linear layer's weights of a column with share_embedding at N(0,1), see `host/embeddings.py`."""
    mended = {name.split(".")[-2] for case in description()["cases"].values() for name in case["mended"]}
    maps = description()["feature_maps"].values()
    shared = {name for each in maps for name, spec in each["features"].items() if "share_embedding" in spec}
    assert mended <= shared


def test_nearly_every_class_takes_every_type_of_feature():
    """So that what is recorded tells; FuxiCTR's linear layer takes no columns of vectors."""
    assert {kind for case in description()["cases"].values() for kind in case["cannot_take"]} == {"embedding"}
