"""The losses against literal versions of their equations, row by row."""

import math

import pytest
import torch

from fuxictr_llm.distillation import representation_loss, score_loss

draw = torch.Generator().manual_seed(0)
Z_V, Z_G = (3 * torch.randn(7, 1, generator=draw) for _ in range(2))
R_V, R_G = (torch.randn(7, 5, generator=draw) for _ in range(2))


def literal_score(kind, z_v, z_g, tau):
    total = 0.0
    for v, g in zip(z_v.view(-1).tolist(), z_g.view(-1).tolist(), strict=True):
        p_v, p_g = (1 / (1 + math.exp(-z / tau)) for z in (v, g))
        if kind == "logit_mse":
            total += (v - g) ** 2
            continue
        row = -p_g * math.log(p_v) - (1 - p_g) * math.log(1 - p_v)
        if kind == "kl":
            row += p_g * math.log(p_g) + (1 - p_g) * math.log(1 - p_g)
        total += tau**2 * row
    return total / len(z_v)


@pytest.mark.parametrize("tau", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("kind", ["bce", "kl", "logit_mse"])
def test_score_losses_are_the_written_out_ones(kind, tau):
    assert score_loss(kind, Z_V, Z_G, tau).item() == pytest.approx(literal_score(kind, Z_V, Z_G, tau), rel=1e-5)


@pytest.mark.parametrize("kind", ["bce", "kl"])
def test_the_gradient_at_the_students_logit_is_the_difference_of_the_probabilities(kind):
    z_v, z_g = Z_V.clone().requires_grad_(), Z_G.clone().requires_grad_()
    score_loss(kind, z_v, z_g).backward()
    assert torch.allclose(z_v.grad * len(z_v), z_v.sigmoid() - z_g.sigmoid(), atol=1e-6)
    assert z_g.grad is None


@pytest.mark.parametrize("kind", ["bce", "kl"])
def test_the_size_of_the_gradient_does_not_hang_on_the_temperature(kind):
    z_v = Z_V.clone().requires_grad_()
    score_loss(kind, z_v, Z_G, tau=1000.0).backward()
    assert torch.allclose(z_v.grad * len(z_v), (Z_V - Z_G) / 4, atol=1e-4)


def test_kl_is_zero_where_both_agree_and_nowhere_below():
    assert score_loss("kl", Z_G, Z_G, tau=2.0).item() == 0
    assert score_loss("kl", Z_V, Z_G, tau=2.0).item() > 0


@pytest.mark.parametrize("kind", ["bce", "kl", "logit_mse"])
def test_confident_logits_stay_finite(kind):
    z_v = torch.tensor([[200.0], [-200.0]], requires_grad=True)
    loss = score_loss(kind, z_v, -z_v.detach())
    loss.backward()
    assert loss.isfinite()
    assert z_v.grad.isfinite().all()
    assert z_v.grad.abs().min() > 0


def test_representation_losses_are_the_written_out_ones():
    hint = torch.nn.Linear(5, 3)
    rows = range(len(R_V))
    squares = [(R_V[b, k] - R_G[b, k]).item() ** 2 for b in rows for k in range(5)]
    cosines = [(R_V[b] @ R_G[b] / (R_V[b].norm() * R_G[b].norm())).item() for b in rows]
    mapped = [(hint.weight @ R_V[b] + hint.bias - R_G[b, :3]).pow(2).mean().item() for b in rows]
    assert representation_loss("mse", R_V, R_G).item() == pytest.approx(sum(squares) / len(squares), rel=1e-5)
    assert representation_loss("cosine", R_V, R_G).item() == pytest.approx(1 - sum(cosines) / 7, rel=1e-5)
    assert representation_loss("hint", R_V, R_G[:, :3], hint).item() == pytest.approx(sum(mapped) / 7, rel=1e-5)


@pytest.mark.parametrize("kind", ["mse", "cosine", "hint"])
def test_representation_losses_put_no_gradient_on_the_teacher(kind):
    r_v, r_g = R_V.clone().requires_grad_(), R_G.clone().requires_grad_()
    representation_loss(kind, r_v, r_g, torch.nn.Linear(5, 5)).backward()
    assert r_v.grad.abs().sum() > 0 and r_g.grad is None
