"""The kernels against their equations, their gradients, and the slices that they work in."""

import pytest
import torch

from fuxictr_llm.enhancement import kernels
from fuxictr_llm.enhancement.kernels import NARROW, SAFE_EXPONENT, mean_log_softmax, pair_matrix, pair_sum


def literal(weights, embeddings):
    """The sum over the pairs of every row, written out."""
    num_fields = embeddings.shape[1]
    pairs = [(i, j) for i in range(num_fields) for j in range(i + 1, num_fields)]
    return torch.stack(
        [sum(w * (row[i] @ row[j]) for w, (i, j) in zip(weights, pairs, strict=True)) for row in embeddings]
    )


@pytest.fixture(params=[1, 45, 2**17], ids=["a row a slice", "a few rows a slice", "all rows at once"])
def slices(request, monkeypatch):
    monkeypatch.setattr(kernels, "SLICE_FLOATS", request.param)


def test_the_matrix_is_symmetric_with_pairs_in_order():
    assert pair_matrix(torch.tensor([1.0, 2.0, 3.0]), 3).tolist() == [[0, 1, 2], [1, 0, 3], [2, 3, 0]]
    assert pair_matrix(torch.zeros(0), 1).tolist() == [[0]]


@pytest.mark.parametrize("width", [1, 5, NARROW, NARROW + 1])
def test_the_sum_equals_the_literal_one_with_and_without_gradients(slices, width):
    torch.manual_seed(0)
    weights, embeddings = torch.randn(6), torch.randn(7, 4, width)
    expected = literal(weights, embeddings).unsqueeze(-1)
    assert torch.allclose(pair_sum(pair_matrix(weights, 4), embeddings), expected, atol=1e-5)
    with_gradient = pair_sum(pair_matrix(weights.requires_grad_(), 4), embeddings.requires_grad_())
    assert torch.allclose(with_gradient, expected, atol=1e-5)


@pytest.mark.parametrize("width", [3, NARROW])
def test_gradients_are_right(slices, width):
    torch.manual_seed(0)
    weights = torch.randn(6, dtype=torch.double, requires_grad=True)
    embeddings = torch.randn(5, 4, width, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda w, e: pair_sum(pair_matrix(w, 4), e), (weights, embeddings))
    constant = weights.detach()
    assert torch.autograd.gradcheck(lambda e: pair_sum(pair_matrix(constant, 4), e), (embeddings,))
    assert torch.autograd.gradcheck(lambda w: pair_sum(pair_matrix(w, 4), embeddings.detach()), (weights,))


def test_no_rows_give_no_sums(slices):
    weights, embeddings = torch.randn(6, requires_grad=True), torch.zeros(0, 4, 5, requires_grad=True)
    total = pair_sum(pair_matrix(weights, 4), embeddings)
    assert total.shape == (0, 1)
    total.sum().backward()
    assert weights.grad.tolist() == [0] * 6


@pytest.mark.parametrize("with_gradient", [True, False])
def test_embeddings_of_half_precision_are_summed_under_autocast(with_gradient):
    torch.manual_seed(0)
    layer, weights = torch.nn.Linear(1, 4 * 5), torch.randn(6, requires_grad=with_gradient)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(with_gradient):
        embeddings = layer(torch.rand(7, 1)).view(7, 4, 5)
        assert embeddings.dtype == torch.bfloat16
        total = pair_sum(pair_matrix(weights, 4), embeddings)
    assert torch.allclose(total, literal(weights, embeddings.float()).unsqueeze(-1), atol=1e-5)
    if with_gradient:
        total.sum().backward()
        assert weights.grad.any() and layer.weight.grad.any()


@pytest.mark.parametrize("spread", [0.01, 5.0, SAFE_EXPONENT, 300.0])
def test_the_mean_log_softmax_and_its_gradient_equal_torchs(slices, spread):
    torch.manual_seed(0)
    embeddings = ((torch.rand(7, 4, 5) - 0.5) * 2 * spread).requires_grad_()
    expected = embeddings.double().log_softmax(dim=-1).mean(dim=0)
    mean = mean_log_softmax(embeddings)
    assert torch.allclose(mean, expected.float(), atol=1e-6 * spread, rtol=1e-6)
    weights = torch.randn(4, 5)
    ours, theirs = (torch.autograd.grad((value * weights).sum(), embeddings)[0] for value in (mean, expected))
    assert torch.allclose(ours, theirs, atol=1e-6, rtol=1e-5)


def test_the_gradient_of_the_mean_log_softmax_is_that_of_its_differences(slices):
    torch.manual_seed(0)
    embeddings = torch.randn(5, 4, 3, dtype=torch.double).transpose(1, 2).requires_grad_()
    assert torch.autograd.gradcheck(mean_log_softmax, (embeddings,))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_stays_visible(value):
    embeddings = torch.zeros(2, 3, 4)
    embeddings[1, 2, 3] = value
    assert mean_log_softmax(embeddings).isnan().any()
