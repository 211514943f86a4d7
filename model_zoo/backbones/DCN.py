from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import CrossNet, MLP_Block
from torch import Tensor, nn

from .base import Activations, Backbone, Rates


class DCN(Backbone):
    """A cross network with vector weights, and next to it an MLP if `dnn_hidden_units` are given.

    Wang et al., "Deep & Cross Network for Ad Click Predictions", ADKDD 2017, equations 3-5.
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
        input_dim = final_dim = feature_map.sum_emb_out_dim()
        self.dnn = None
        if dnn_hidden_units:
            self.dnn = MLP_Block(
                input_dim=input_dim,
                hidden_units=dnn_hidden_units,
                hidden_activations=dnn_activations,
                dropout_rates=net_dropout,
                batch_norm=batch_norm,
            )
            final_dim += dnn_hidden_units[-1]
        self.crossnet = CrossNet(input_dim, num_cross_layers)
        self.fc = nn.Linear(final_dim, 1)
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        flat = self.embedding_layer(X, flatten_emb=True)
        final = self.crossnet(flat)
        if self.dnn is not None:
            final = torch.cat([final, self.dnn(flat)], dim=-1)
        return {"y_pred": self.output_activation(self.fc(final))}
