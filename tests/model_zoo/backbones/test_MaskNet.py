"""MaskNet against Wang et al., its mask, block and both nets written out."""

from itertools import product
from types import SimpleNamespace

import pytest
import torch

from literal import assert_logit, batch_of, build_backbone, fields_of, mlp_literal
from support import small_feature_map


def block_literal(block, embeddings, hidden, layer_norm):
    """`ReLU(LN(W (mask * hidden)))` of one row."""
    first, second = block.mask_layer[0], block.mask_layer[2]
    mask = second.weight @ torch.relu(first.weight @ embeddings + first.bias) + second.bias
    out = block.hidden_layer[0].weight @ (mask * hidden)
    return torch.relu(block.hidden_layer[1](out) if layer_norm else out)


def build(**params):
    model = build_backbone("MaskNet", small_feature_map("MaskNet"), **params)
    batch = batch_of(model)
    fields = fields_of(model, batch)
    normed = fields
    if params["emb_layernorm"]:
        normed = torch.stack([norm(fields[:, i]) for i, norm in enumerate(model.emb_norm)], dim=1)
    return model, batch, [(e.flatten(), n.flatten()) for e, n in zip(fields, normed, strict=True)]


@pytest.mark.parametrize("emb_layernorm, net_layernorm", product([True, False], repeat=2))
def test_a_serial_net_masks_block_after_block(emb_layernorm, net_layernorm):
    params = {"dnn_hidden_units": [6, 5], "reduction_ratio": 0.5, "net_dropout": [0, 0.2]}
    model, batch, rows = build(emb_layernorm=emb_layernorm, net_layernorm=net_layernorm, **params)
    expected = []
    for embeddings, hidden in rows:
        for block in model.mask_net.mask_blocks:
            hidden = block_literal(block, embeddings, hidden, net_layernorm)
        expected.append(model.mask_net.fc[0].weight[0] @ hidden + model.mask_net.fc[0].bias[0])
    assert_logit(model, batch, torch.stack(expected))


@pytest.mark.parametrize("emb_layernorm, net_layernorm", product([True, False], repeat=2))
def test_a_parallel_net_has_an_mlp_above_its_blocks(emb_layernorm, net_layernorm):
    params = {"dnn_hidden_units": [6], "parallel_num_blocks": 2, "parallel_block_dim": 3, "net_dropout": 0.2}
    params |= {"emb_layernorm": emb_layernorm, "net_layernorm": net_layernorm}
    model, batch, rows = build(model_type="ParallelMaskNet", **params)
    blocks = model.mask_net.mask_blocks
    seen = [torch.cat([block_literal(block, *row, net_layernorm) for block in blocks]) for row in rows]
    before_activation = SimpleNamespace(mlp=model.mask_net.dnn.mlp[:-1])
    assert_logit(model, batch, mlp_literal(before_activation, torch.stack(seen)))


@pytest.mark.parametrize(
    "params, message",
    [
        ({"model_type": "Serial"}, "model_type must be one of SerialMaskNet, ParallelMaskNet .got 'Serial'."),
        ({"net_dropout": [0.1]}, r"net_dropout must be one value, or one for each of the 3 layers .got \[0.1\]."),
        ({"reduction_ratio": 0.001}, "reduction_ratio leaves a mask of 16 no hidden unit .got 0.001."),
        ({"model_type": "ParallelMaskNet", "net_dropout": [0.1]}, r"must be one value for all layers .got \[0.1\]."),
        ({"model_type": "ParallelMaskNet", "parallel_num_blocks": 0}, "parallel_num_blocks must be 1 or more .got 0."),
    ],
)
def test_wrong_arguments_are_named(params, message):
    with pytest.raises(ValueError, match=message):
        build_backbone("MaskNet", **params)
