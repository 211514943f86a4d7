"""DIN against Zhou et al., equation 3, written out step by step."""

import pytest
import torch
from fuxictr.pytorch.layers import Dice

from histories import embeddings_of, histories, others, pair_of, reader
from literal import assert_logit, mlp_literal


def weight_of(unit, target, step):
    """The attention unit of one step: a layer, Dice (BatchNorm's statistics decide about the gate), a layer."""
    x = torch.cat([target, step, target - step, target * step])
    for layer in unit.attention_layer.mlp:
        if isinstance(layer, Dice):
            normal = (x - layer.bn.running_mean) / (layer.bn.running_var + layer.bn.eps).sqrt()
            gate = 1 / (1 + torch.exp(-normal))
            x = gate * x + (1 - gate) * layer.alpha * x
        else:
            x = layer.weight @ x + layer.bias
    return x


@pytest.mark.parametrize("softmax", [False, True])
def test_the_logit_is_an_mlp_of_the_fields_and_the_weighted_history(softmax):
    model = reader("DIN", din_use_softmax=softmax)
    batch = histories(model.feature_map)
    embeddings, rows = embeddings_of(model, batch), []
    for row in range(12):
        target, steps = pair_of(embeddings, batch, row)
        weights = [weight_of(model.attention_layers[0], target, step) for step in steps]
        if softmax:
            weights = [weight.exp() / sum(each.exp() for each in weights) for weight in weights]
        pooled = sum((weight * step for weight, step in zip(weights, steps, strict=True)), torch.zeros(8))
        told = {name: embeddings[name][row] for name in embeddings}
        told["click_history"], told["cate_history"] = pooled[:4], pooled[4:]
        assert len(others(embeddings, model.feature_map, row)) == len(told) - 2
        rows.append(torch.cat([told[name] for name in model.feature_map.features if name in told]))
    assert_logit(model, batch, mlp_literal(model.dnn, torch.stack(rows)))
