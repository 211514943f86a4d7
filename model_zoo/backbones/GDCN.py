from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import MLP_Block
from torch import Tensor, nn

from .base import Activations, Backbone, Rates


class GDCN(Backbone):
    """A gated cross network below an MLP (GDCN-S), or without hidden units below a linear layer (GCN).

    Wang et al., "Towards Deeper, Lighter and Interpretable Cross Network for CTR Prediction", CIKM 2023: its gated
    cross layer and stacked structure. As in FuxiCTR, the biases of the cross layers are drawn from [0, 1); its class
    fails without hidden units, ours does not.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        dnn_hidden_units: list[int] = [],
        dnn_activations: Activations = "ReLU",
        num_cross_layers: int = 3,
        net_dropout: Rates = 0,
        batch_norm: bool = False,
        **shared: Any,
    ):
        super().__init__(feature_map, **shared)
        input_dim = feature_map.sum_emb_out_dim()
        self.dnn = MLP_Block(
            input_dim=input_dim,
            output_dim=1,
            hidden_units=dnn_hidden_units,
            hidden_activations=dnn_activations,
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.cross_net = GatedCrossNet(input_dim, num_cross_layers)
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        logit = self.dnn(self.cross_net(self.embedding_layer(X, flatten_emb=True)))
        return {"y_pred": self.output_activation(logit)}


class GatedCrossNet(nn.Module):
    """`c_{l+1} = c_0 * (W_l c_l + b_l) * sigmoid(G_l c_l) + c_l`, `[B, input_dim] -> [B, input_dim]`."""

    def __init__(self, input_dim: int, num_layers: int):
        super().__init__()
        self.w = nn.ModuleList(nn.Linear(input_dim, input_dim, bias=False) for _ in range(num_layers))
        self.wg = nn.ModuleList(nn.Linear(input_dim, input_dim, bias=False) for _ in range(num_layers))
        self.b = nn.ParameterList(nn.Parameter(torch.rand(input_dim)) for _ in range(num_layers))

    def forward(self, base: Tensor) -> Tensor:
        x = base
        for cross, gate, bias in zip(self.w, self.wg, self.b, strict=True):
            crossed, gates = cross(x) + bias, gate(x).sigmoid()
            x = base * crossed * gates + x
        return x
