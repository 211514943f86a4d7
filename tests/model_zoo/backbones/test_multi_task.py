"""ShareBottom, MMoE (Ma et al., equations 6-8) and PLE (Tang et al., equations 1-6), written out task by task."""

import pytest
import torch

from fuxictr_llm.diagnosis.tiny import tiny_feature_map
from literal import batch_of, build_backbone, fields_of, mlp_literal

UNITS = {"expert_hidden_units": [6, 5], "tower_hidden_units": [4], "hidden_activations": "tanh"}
VARIANTS = [{"gate_hidden_units": []}, {"gate_hidden_units": [3], "batch_norm": True, "net_dropout": 0.2}]


def flat(model, batch):
    return fields_of(model, batch).flatten(start_dim=1)


def mixed(gate, x, experts):
    """`sum_i softmax(gate(x))_i expert_i`."""
    scores = mlp_literal(gate, x).exp()
    return sum(scores[:, i : i + 1] / scores.sum(dim=1, keepdim=True) * expert for i, expert in enumerate(experts))


def assert_tasks(model, batch, representations):
    """The prediction of each task is its tower's on its representation; tasks and rows differ."""
    found = model.forward(batch)
    assert list(found) == [f"{label}_pred" for label in model.feature_map.labels] and len(found) == len(representations)
    for prediction, tower, x in zip(found.values(), model.tower, representations, strict=True):
        expected = mlp_literal(tower, x)
        assert prediction.shape == (5, 1) and expected.std() > 1e-3
        torch.testing.assert_close(prediction.logit(), expected, rtol=1e-4, atol=1e-5)
    assert len(found) == 1 or not torch.allclose(*found.values())


def build(name, tasks, **params):
    model = build_backbone(name, tiny_feature_map(tasks=tasks), num_tasks=tasks, **params)
    return model, batch_of(model)


@pytest.mark.parametrize("tasks", [1, 2])
def test_sharebottom(tasks):
    model, batch = build("ShareBottom", tasks, bottom_hidden_units=[6, 5], tower_hidden_units=[4])
    assert_tasks(model, batch, [mlp_literal(model.bottom, flat(model, batch))] * tasks)


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("changes", VARIANTS)
def test_mmoe(tasks, changes):
    model, batch = build("MMoE", tasks, num_experts=3, **UNITS, **changes)
    x = flat(model, batch)
    experts = [mlp_literal(expert, x) for expert in model.mmoe_layer.experts]
    assert len(experts) == 3
    assert_tasks(model, batch, [mixed(gate, x, experts) for gate in model.mmoe_layer.gate])


@pytest.mark.parametrize("tasks", [1, 2])
@pytest.mark.parametrize("changes", VARIANTS)
@pytest.mark.parametrize("layers, shared, own", [(1, 2, 1), (2, 1, 2), (2, 2, 0)])
def test_ple(tasks, changes, layers, shared, own):
    model, batch = build(
        "PLE", tasks, num_layers=layers, num_shared_experts=shared, num_specific_experts=own, **UNITS, **changes
    )
    x = [flat(model, batch)] * (tasks + 1)
    for layer in model.cgc_layers:
        of_all = [mlp_literal(expert, x[-1]) for expert in layer.shared_experts]
        assert len(of_all) == shared and all(len(experts) == own for experts in layer.specific_experts)
        # The gate of what is shared sees the shared experts alone, as in FuxiCTR.
        of_task = [[mlp_literal(e, x[t]) for e in layer.specific_experts[t]] for t in range(tasks)] + [[]]
        x = [mixed(layer.gate[t], x[t], of_task[t] + of_all) for t in range(tasks + 1)]
    assert_tasks(model, batch, x[:-1])


@pytest.mark.parametrize("argument", ["num_layers", "num_shared_experts"])
def test_ple_without_experts_is_named(argument):
    with pytest.raises(ValueError, match=f"{argument} must be a positive integer .got 0"):
        build("PLE", 1, **{argument: 0})
