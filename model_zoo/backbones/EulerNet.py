from typing import Any

import torch
from fuxictr.features import FeatureMap
from torch import Tensor, nn

from .base import Backbone


class EulerNet(Backbone):
    """Fields as complex numbers: sums of their phases and log moduli are products of any order.

    Tian et al., "EulerNet: Adaptive Feature Interaction Learning via Euler's Formula for CTR Prediction", SIGIR 2023:
    its complex-space mapping, Euler interaction layers (explicit and implicit) and output layer. As in FuxiCTR, a
    layer as wide as its input starts from the identity, any other from nearly one-hot orders; real and
    imaginary part share the output layer, whose bias therefore counts twice; the weights of the layer norms exist
    even if `layer_norm` is off.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        shape: list[int] = [3],
        net_ex_dropout: float = 0,
        net_im_dropout: float = 0,
        layer_norm: bool = False,
        **shared: Any,
    ):
        super().__init__(feature_map, **shared)
        if any(neurons < 1 for neurons in shape):
            raise ValueError(f"shape must hold numbers of neurons, 1 or more each (got {shape})")
        # As in FuxiCTR, only the embeddings are reset: the layers below initialize themselves.
        self.reset_parameters()
        widths = [feature_map.num_fields, *shape]
        self.Euler_interaction_layers = nn.Sequential(
            *(
                EulerInteractionLayer(
                    widths[i], widths[i + 1], self.embedding_dim, net_ex_dropout, net_im_dropout, layer_norm
                )
                for i in range(len(shape))
            )
        )
        self.mu = nn.Parameter(torch.ones(1, feature_map.num_fields, 1))
        self.reg = nn.Linear(widths[-1] * self.embedding_dim, 1)
        nn.init.xavier_normal_(self.reg.weight)
        self.start(reset=False)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        phases = self.embedding_layer(X)
        numbers = (self.mu * phases.cos(), self.mu * phases.sin())
        real, imaginary = self.Euler_interaction_layers(numbers)
        logit = self.reg(real.flatten(start_dim=1)) + self.reg(imaginary.flatten(start_dim=1))
        return {"y_pred": self.output_activation(logit)}


class EulerInteractionLayer(nn.Module):
    """Complex numbers as pairs (real, imaginary), `[B, in, D] -> [B, out, D]` each.

    Explicit: moduli to the power of the orders and phases times the orders, that is products of the inputs.
    Implicit: a linear map and ReLU of the real and of the imaginary parts. Both are added.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        embedding_dim: int,
        explicit_dropout: float,
        implicit_dropout: float,
        layer_norm: bool,
    ):
        super().__init__()
        self.layer_norm = layer_norm
        if in_features == out_features:
            orders = torch.eye(in_features)
        else:
            orders = (torch.randn(in_features, out_features) / 0.01).softmax(dim=0)
        self.inter_orders = nn.Parameter(orders)
        self.im = nn.Linear(in_features * embedding_dim, out_features * embedding_dim)
        nn.init.xavier_uniform_(self.im.weight)
        self.bias_lam = nn.Parameter(torch.randn(1, embedding_dim, out_features) * 0.01)
        self.bias_theta = nn.Parameter(torch.randn(1, embedding_dim, out_features) * 0.01)
        self.drop_ex = nn.Dropout(explicit_dropout)
        self.drop_im = nn.Dropout(implicit_dropout)
        self.norm_r = nn.LayerNorm(embedding_dim)
        self.norm_p = nn.LayerNorm(embedding_dim)

    def forward(self, numbers: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        real, imaginary = numbers
        log_modulus = self.drop_ex(0.5 * torch.log(real**2 + imaginary**2 + 1e-8))  # finite at zero
        phase = self.drop_ex(torch.atan2(imaginary, real))
        modulus = self._ordered(log_modulus, self.bias_lam).exp()
        phase = self._ordered(phase, self.bias_theta)
        real, imaginary = self._implicit(real, imaginary)
        real = real + modulus * phase.cos()
        imaginary = imaginary + modulus * phase.sin()
        return (self.norm_r(real), self.norm_p(imaginary)) if self.layer_norm else (real, imaginary)

    def _ordered(self, x: Tensor, bias: Tensor) -> Tensor:
        """For each output the sum of the inputs weighted by its orders, plus a bias."""
        return (x.transpose(1, 2) @ self.inter_orders + bias).transpose(1, 2)

    def _implicit(self, real: Tensor, imaginary: Tensor) -> tuple[Tensor, Tensor]:
        embedding_dim = real.shape[-1]
        real, imaginary = self.drop_im(real.flatten(start_dim=1)), self.drop_im(imaginary.flatten(start_dim=1))
        real, imaginary = self.im(real).relu(), self.im(imaginary).relu()
        return real.unflatten(-1, (-1, embedding_dim)), imaginary.unflatten(-1, (-1, embedding_dim))
