"""BST against Chen et al., equations 1-6, written out head by head."""

import math

import pytest
import torch

from fuxictr_llm.model_zoo.backbones.BST import sinusoids
from histories import SEQUENCE, TARGET, embeddings_of, histories, others, reader
from literal import assert_logit, mlp_literal

L = 6  # five steps and the target


def normal(layer, x):
    """LayerNorm of `[L, width]`, or what went in where there is none."""
    if not isinstance(layer, torch.nn.LayerNorm):
        return x
    centred = x - x.mean(dim=1, keepdim=True)
    return centred / (centred.square().mean(dim=1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


def attended(layer, x, sees):
    """Equations 1-3, `[L, width]`; `sees(i, j)` says whether place i sees place j."""
    size = x.shape[1] // layer.num_heads
    queries, keys, values = (x @ layer.in_proj_weight.T + layer.in_proj_bias).chunk(3, dim=1)
    out = torch.zeros_like(x)
    for head in range(layer.num_heads):
        part = slice(head * size, (head + 1) * size)
        for i in range(L):
            seen = [j for j in range(L) if sees(i, j)]
            scores = [(queries[i, part] @ keys[j, part] / math.sqrt(size)).exp() for j in seen]
            for score, j in zip(scores, seen, strict=True):
                out[i, part] += score / sum(scores) * values[j, part]
    return out @ layer.out_proj.weight.T + layer.out_proj.bias


@pytest.mark.parametrize("pooling", ["mean", "sum", "target", "concat"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"use_causal_mask": True, "stacked_transformer_layers": 2, "use_position_emb": False},
        {"layer_norm": False, "use_residual": False, "num_heads": 1},
    ],
)
def test_the_logit_is_an_mlp_of_the_fields_and_the_pooled_transformer(pooling, changes):
    model = reader("BST", seq_pooling_type=pooling, **changes)
    batch = histories(model.feature_map)
    embeddings, rows = embeddings_of(model, batch), []
    transformer = model.transformer_encoders[0]
    for row in range(12):
        steps = torch.cat([embeddings[name][row] for name in SEQUENCE], dim=1)
        x = torch.cat([steps, torch.cat([embeddings[name][row] for name in TARGET]).unsqueeze(0)])
        if transformer.position_emb is not None:
            x = torch.cat([x, transformer.position_emb], dim=1)
        real = [*(batch["click_history"][row] != 0).tolist(), True]

        def sees(i, j, real=real):
            return (real[j] or i == j) and not (changes.get("use_causal_mask") and j > i)

        for block in transformer.transformer_blocks:
            residual = 1 if changes.get("use_residual", True) else 0
            x = normal(block.layer_norm1, residual * x + attended(block.attention, x, sees))
            hidden = torch.nn.functional.leaky_relu(x @ block.ffn[0].weight.T + block.ffn[0].bias, 0.01)
            x = normal(block.layer_norm2, residual * x + hidden @ block.ffn[2].weight.T + block.ffn[2].bias)
        real_places = [x[i] for i in range(L) if real[i]]
        pooled = {
            "mean": sum(real_places) / len(real_places),
            "sum": sum(real_places),
            "target": x[-1],
            "concat": x.flatten(),
        }[pooling]
        rows.append(torch.cat([*others(embeddings, model.feature_map, row), pooled]))
    assert_logit(model, batch, mlp_literal(model.dnn, torch.stack(rows)))


@pytest.mark.parametrize("width", [4, 5])
def test_positions_start_as_waves(width):
    expected = [
        [(math.cos if i % 2 else math.sin)(place / 10000 ** (i // 2 * 2 / width)) for i in range(width)]
        for place in range(7)
    ]
    torch.testing.assert_close(sinusoids(7, width), torch.tensor(expected))
