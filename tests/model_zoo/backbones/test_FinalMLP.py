"""FinalMLP against Mao et al., equations 2-9, written out."""

import pytest
import torch

from literal import assert_logit, batch_of, build_backbone, fields_of, mlp_literal
from support import small_feature_map


def fused_literal(fusion, x, y, heads):
    """One row: `w_x x + w_y y + sum_h x_h W_h y_h`."""
    out = fusion.w_x.weight[0] @ x + fusion.w_x.bias[0] + fusion.w_y.weight[0] @ y + fusion.w_y.bias[0]
    weights = fusion.w_xy.view(heads, len(x) // heads, len(y) // heads)
    for weight, x_head, y_head in zip(weights, x.chunk(heads), y.chunk(heads), strict=True):
        for i, x_i in enumerate(x_head):
            for j, y_j in enumerate(y_head):
                out = out + x_i * weight[i, j] * y_j
    return out


@pytest.mark.parametrize(
    "params",
    [
        {"use_fs": False, "num_heads": 1, "mlp1_batch_norm": True},
        {"use_fs": True, "num_heads": 2, "mlp2_dropout": 0.2},
        {"use_fs": True, "num_heads": 2, "fs1_context": ["user"], "fs2_context": ["item", "tags"]},
    ],
)
def test_the_logit_fuses_two_mlps_of_gated_fields(params):
    units = {"mlp1_hidden_units": [7, 6], "mlp2_hidden_units": [4], "fs_hidden_units": [3]}
    model = build_backbone("FinalMLP", small_feature_map("FinalMLP"), **units, **params)
    batch = batch_of(model)
    flat = fields_of(model, batch).flatten(start_dim=1)
    streams = []
    for stream, mlp in (("fs1", model.mlp1), ("fs2", model.mlp2)):
        gates = torch.ones_like(flat)
        if params["use_fs"]:
            if params.get(f"{stream}_context"):
                context = fields_of(model, batch, f"fs_module.{stream}_ctx_emb").flatten(start_dim=1)
            else:
                context = getattr(model.fs_module, f"{stream}_ctx_bias").expand(len(flat), -1)
            gates = 2 * mlp_literal(getattr(model.fs_module, f"{stream}_gate"), context)
        streams.append(mlp_literal(mlp, gates * flat))
    expected = [fused_literal(model.fusion_module, x, y, params["num_heads"]) for x, y in zip(*streams, strict=True)]
    assert_logit(model, batch, torch.stack(expected))


def test_heads_that_do_not_divide_the_widths_are_named():
    message = r"both last hidden units \(6, 4\) must be divisible by num_heads \(4\)"
    with pytest.raises(ValueError, match=message):
        build_backbone("FinalMLP", mlp1_hidden_units=[6], mlp2_hidden_units=[4], num_heads=4)
