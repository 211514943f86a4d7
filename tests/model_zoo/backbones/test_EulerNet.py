"""EulerNet against Tian et al., with complex numbers."""

import pytest
import torch

from literal import assert_logit, batch_of, build_backbone, fields_of
from support import small_feature_map


def layer_literal(layer, z, layer_norm):
    """Complex `[in, D] -> [out, D]` of one row: products of powers, plus ReLUs of linear maps of both parts."""
    width, outputs = z.shape[1], layer.inter_orders.shape[1]
    explicit = torch.zeros(outputs, width, dtype=z.dtype)
    for j in range(outputs):
        for d in range(width):
            bias = torch.complex(layer.bias_lam[0, d, j], layer.bias_theta[0, d, j])
            product = bias.exp()
            for i in range(len(z)):
                product = product * z[i, d] ** layer.inter_orders[i, j]
            explicit[j, d] = product
    real, imaginary = (torch.relu(layer.im.weight @ part.flatten() + layer.im.bias) for part in (z.real, z.imag))
    real, imaginary = (part.view(outputs, width) for part in (real, imaginary))
    real, imaginary = real + explicit.real, imaginary + explicit.imag
    if layer_norm:
        real, imaginary = layer.norm_r(real), layer.norm_p(imaginary)
    return torch.complex(real, imaginary)


@pytest.mark.parametrize("shape, layer_norm", [([3], False), ([5, 2], True), ([5], True)])
def test_the_logit_is_one_of_sums_in_the_exponent(shape, layer_norm):
    params = {"shape": shape, "layer_norm": layer_norm, "net_ex_dropout": 0.2, "net_im_dropout": 0.2}
    model = build_backbone("EulerNet", small_feature_map("EulerNet"), **params)
    batch = batch_of(model)
    expected = []
    for phases in fields_of(model, batch):
        z = model.mu[0] * torch.exp(1j * phases)
        for layer in model.Euler_interaction_layers:
            z = layer_literal(layer, z, layer_norm)
        weight, bias = model.reg.weight[0], model.reg.bias[0]
        expected.append(weight @ z.real.flatten() + bias + weight @ z.imag.flatten() + bias)
    assert_logit(model, batch, torch.stack(expected))


def test_a_layer_without_neurons_is_named():
    with pytest.raises(ValueError, match=r"shape must hold numbers of neurons, 1 or more each .got \[3, 0\]."):
        build_backbone("EulerNet", shape=[3, 0])
