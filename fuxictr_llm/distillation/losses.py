"""What a student is told about its teacher's logits and representations. No gradient reaches the teacher.

Shape symbols: `B` rows, `R` width of the student's representation, `R_g` of the teacher's.
"""

from typing import Literal

import torch.nn.functional as functional
from torch import Tensor, nn


def score_loss(kind: Literal["bce", "kl", "logit_mse"], student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """The mean over rows of how far the student's score is from the teacher's, a scalar.

    With `p_v = sigmoid(z_v / tau)` and `p_g = sigmoid(z_g / tau)`, the gradient of `bce` and `kl` by a row's `z_v` is
    `tau (p_v - p_g) / B`: at tau 1 the plain difference, at high tau that of `logit_mse` divided by 8.
    (Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.)

    Args:
        kind: `bce`, `kl` or `logit_mse`, which knows no temperature.
        student: its logits z_v, `[B, 1]`.
        teacher: its logits z_g, `[B, 1]`.
        tau: temperature.
    """
    teacher = teacher.detach()
    if kind == "logit_mse":
        return functional.mse_loss(student, teacher)
    probability = (teacher / tau).sigmoid()
    loss = functional.binary_cross_entropy_with_logits(student / tau, probability)
    if kind == "kl":  # the cross entropy less the teacher's own entropy
        loss = loss - functional.binary_cross_entropy_with_logits(teacher / tau, probability)
    return tau**2 * loss


def representation_loss(
    kind: Literal["mse", "hint", "cosine"], student: Tensor, teacher: Tensor, hint: nn.Module | None = None
) -> Tensor:
    """How far the student's representation is from the teacher's, a scalar.

    Args:
        kind: `mse`: mean over rows and widths; `hint`: the same after `hint` on the student's; `cosine`: mean of
            `1 - cos` over rows.
        student: `[B, R]`.
        teacher: `[B, R_g]`.
        hint: of `hint`: maps `[B, R]` to `[B, R_g]` (Romero et al., "FitNets", arXiv 1412.6550, section 2.2).
    """
    teacher = teacher.detach()
    if kind == "cosine":
        return (1 - functional.cosine_similarity(student, teacher, dim=-1)).mean()
    return functional.mse_loss(hint(student) if kind == "hint" else student, teacher)
