"""TransAct against Xia et al., section 3.3, with a transformer (Vaswani et al., 2017) written out, and DCNv2 on top."""

import math

import pytest
import torch

from histories import embeddings_of, histories, others, pair_of, reader
from literal import assert_logit, mlp_literal


def normal(layer, x):
    centred = x - x.mean(dim=1, keepdim=True)
    return centred / (centred.square().mean(dim=1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


def transformed(layer, x):
    """A layer of the encoder over real steps `[steps, width]`."""
    attention, size = layer.self_attn, x.shape[1] // layer.self_attn.num_heads
    queries, keys, values = (x @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, dim=1)
    heads = []
    for head in range(attention.num_heads):
        part = slice(head * size, (head + 1) * size)
        scores = (queries[:, part] @ keys[:, part].T / math.sqrt(size)).exp()
        heads.append(scores / scores.sum(dim=1, keepdim=True) @ values[:, part])
    x = normal(layer.norm1, x + torch.cat(heads, dim=1) @ attention.out_proj.weight.T + attention.out_proj.bias)
    hidden = (x @ layer.linear1.weight.T + layer.linear1.bias).clamp(min=0)
    return normal(layer.norm2, x + hidden @ layer.linear2.weight.T + layer.linear2.bias)


@pytest.mark.parametrize(
    "changes",
    [{}, {"first_k_cols": 3, "concat_max_pool": False, "num_heads": 2, "transformer_layers": 2}, {"first_k_cols": 2}],
)
@pytest.mark.parametrize("padded", ["front", "behind"])
def test_the_logit_is_dcnv2_of_the_fields_and_the_last_and_largest_steps(changes, padded):
    model = reader("TransAct", mlp_hidden_units=[5], **changes)
    batch = histories(model.feature_map, padded=padded)
    embeddings, rows = embeddings_of(model, batch), []
    transformer, k = model.transformer_encoders[0], changes.get("first_k_cols", 1)
    for row in range(12):
        target, steps = pair_of(embeddings, batch, row)
        x = torch.stack([torch.cat([step, target]) for step in steps or [torch.zeros(8)]])
        for layer in transformer.transformer_encoder.layers:
            x = transformed(layer, x)
        last = torch.cat([torch.zeros(k, 16), x])[-k:]  # the latest is the last
        parts = [*others(embeddings, model.feature_map, row), last.flatten()]
        if changes.get("concat_max_pool", True):
            linear = transformer.out_linear
            parts.append(linear.weight @ x.max(dim=0).values + linear.bias)
        rows.append(torch.cat(parts))
    x = torch.stack(rows)
    cross = model.crossnet.cross_layers[0]
    crossed = x + x * (x @ cross.weight.T + cross.bias)
    assert_logit(model, batch, mlp_literal(model.mlp, torch.cat([crossed, mlp_literal(model.parallel_dnn, x)], dim=1)))
