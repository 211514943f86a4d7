from typing import Any, Literal

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import CrossNetMix, CrossNetV2, MLP_Block
from torch import Tensor, nn

from .base import Activations, Backbone, Rates

STRUCTURES = ("crossnet_only", "stacked", "parallel", "stacked_parallel")


class DCNv2(Backbone):
    """A cross network with full (or low-rank mixture) weights, alone, below an MLP or next to one.

    Wang et al., "DCN V2: Improved Deep & Cross Network and Practical Lessons for Web-scale Learning to
    Rank Systems", WWW 2021, equation 1 and figure 1.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        model_structure: Literal["crossnet_only", "stacked", "parallel", "stacked_parallel"] = "parallel",
        use_low_rank_mixture: bool = False,
        low_rank: int = 32,
        num_experts: int = 4,
        stacked_dnn_hidden_units: list[int] = [],
        parallel_dnn_hidden_units: list[int] = [],
        dnn_activations: Activations = "ReLU",
        num_cross_layers: int = 3,
        net_dropout: Rates = 0,
        batch_norm: bool = False,
        **shared: Any,
    ):
        super().__init__(feature_map, **shared)
        if model_structure not in STRUCTURES:
            raise ValueError(f"model_structure must be one of {', '.join(STRUCTURES)} (got {model_structure!r})")
        input_dim = feature_map.sum_emb_out_dim()
        if use_low_rank_mixture:
            self.crossnet = CrossNetMix(input_dim, num_cross_layers, low_rank=low_rank, num_experts=num_experts)
        else:
            self.crossnet = CrossNetV2(input_dim, num_cross_layers)

        def mlp(hidden_units: list[int]) -> MLP_Block:
            return MLP_Block(
                input_dim=input_dim,
                hidden_units=hidden_units,
                hidden_activations=dnn_activations,
                dropout_rates=net_dropout,
                batch_norm=batch_norm,
            )

        final_dim = 0
        self.stacked_dnn = self.parallel_dnn = None
        if model_structure in ("stacked", "stacked_parallel"):
            self.stacked_dnn = mlp(stacked_dnn_hidden_units)
            final_dim += _width(input_dim, stacked_dnn_hidden_units)
        else:
            final_dim += input_dim
        if model_structure in ("parallel", "stacked_parallel"):
            self.parallel_dnn = mlp(parallel_dnn_hidden_units)
            final_dim += _width(input_dim, parallel_dnn_hidden_units)
        self.fc = nn.Linear(final_dim, 1)
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        flat = self.embedding_layer(X, flatten_emb=True)
        final = self.crossnet(flat).view_as(flat)  # CrossNetMix squeezes a batch of one row
        if self.stacked_dnn is not None:
            final = self.stacked_dnn(final)
        if self.parallel_dnn is not None:
            final = torch.cat([final, self.parallel_dnn(flat)], dim=-1)
        return {"y_pred": self.output_activation(self.fc(final))}


def _width(input_dim: int, hidden_units: list[int]) -> int:
    return hidden_units[-1] if hidden_units else input_dim
