"""FinalNet against Zhu et al., its layer, blocks and losses written out."""

import pytest
import torch

from literal import assert_logit, batch_of, build_backbone, fields_of
from support import small_feature_map


def block_literal(block, x, residual_type, batch_norm):
    """One row through a block: two linear maps, the first kept beside (or added to) their product."""
    for i, layer in enumerate(block.layer):
        first, second = (layer.linear.weight @ x + layer.linear.bias).chunk(2)
        x = torch.cat([first, first * second]) if residual_type == "concat" else first + first * second
        if batch_norm:
            norm = block.norm[i]
            x = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
        x = x if block.activation[i] is None else torch.relu(x)
    return x


def gated_literal(gating, e):
    """The fields, then the fields times gates that are linear in all fields, for each embedding dim."""
    gates = torch.stack([gating.linear.weight @ column + gating.linear.bias for column in e.T], dim=1)
    return torch.cat([e, gates * e])


@pytest.mark.parametrize(
    "block_type, use_feature_gating, residual_type, batch_norm",
    [
        ("2B", True, "concat", True),
        ("2B", False, "sum", True),
        ("1B", True, "sum", False),
        ("1B", False, "concat", True),
    ],
)
def test_the_logit_is_that_of_a_block_or_the_mean_of_two(block_type, use_feature_gating, residual_type, batch_norm):
    params = {"block1_hidden_units": [6, 4], "block2_hidden_units": [4], "block1_hidden_activations": [None, "relu"]}
    params |= {"block_type": block_type, "use_feature_gating": use_feature_gating, "residual_type": residual_type}
    model = build_backbone("FinalNet", small_feature_map("FinalNet"), batch_norm=batch_norm, **params)
    batch = batch_of(model)
    expected = []
    for e in fields_of(model, batch):
        gated = gated_literal(model.feature_gating, e) if use_feature_gating else e
        logits = [model.fc1(block_literal(model.block1, gated.flatten(), residual_type, batch_norm))]
        if block_type == "2B":
            logits.append(model.fc2(block_literal(model.block2, e.flatten(), residual_type, batch_norm)))
        expected.append(sum(logits) / len(logits))
    assert_logit(model, batch, torch.stack(expected))


def test_two_blocks_learn_from_their_mean_which_is_held_fixed():
    units = {"block1_hidden_units": [4], "block2_hidden_units": [4]}
    model = build_backbone("FinalNet", **units).train()
    batch = batch_of(model)
    y = model.get_labels(batch)
    out = model.forward(batch)
    loss = model.compute_loss(out, y)

    def cross_entropy(target, p):
        return -sum(t * p[i].log() + (1 - t) * (1 - p[i]).log() for i, t in enumerate(target)).sum() / len(target)

    first, second, mean = (torch.sigmoid(z) for z in (out["y1"], out["y2"], (out["y1"] + out["y2"]) / 2))
    fixed = mean.detach()
    expected = cross_entropy(y, mean) + cross_entropy(fixed, first) + cross_entropy(fixed, second)
    torch.testing.assert_close(loss, expected)
    weights = [model.fc1.weight, model.fc2.weight, model.block1.layer[0].linear.weight]
    gradients = (torch.autograd.grad(value, weights, retain_graph=True) for value in (loss, expected))
    for ours, literal in zip(*gradients, strict=True):
        assert ours.abs().sum() > 0
        torch.testing.assert_close(ours, literal)
    single = build_backbone("FinalNet", block_type="1B", **units)
    out = single.forward(batch)
    assert (out["y1"], out["y2"]) == (None, None)
    torch.testing.assert_close(single.compute_loss(out, y), cross_entropy(y, out["y_pred"]))


@pytest.mark.parametrize(
    "params, message",
    [
        ({"block_type": "3B"}, "block_type must be one of 1B, 2B .got '3B'."),
        ({"residual_type": "add"}, "residual_type must be one of concat, sum .got 'add'."),
        ({"block2_hidden_units": [5]}, r"block2_hidden_units must be even where residual_type is concat .got \[5\]."),
        ({"block1_hidden_units": []}, r"block1_hidden_units must name a layer or more .got \[\]."),
        ({"block1_dropout": [0.1]}, r"block1_dropout must be one value, or one for each of the 3 layers .got \[0.1\]."),
    ],
)
def test_wrong_arguments_are_named(params, message):
    with pytest.raises(ValueError, match=message):
        build_backbone("FinalNet", **params)
