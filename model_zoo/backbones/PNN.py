from typing import Any, Literal

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import MLP_Block
from torch import Tensor

from ..dot_interaction import DotInteraction
from .base import Activations, Backbone, Rates


class PNN(Backbone):
    """An MLP over the field embeddings and the inner products of all pairs of them.

    Qu et al., "Product-based Neural Networks for User Response Prediction", ICDM 2016, equations 1-3 with inner
    products (IPNN, section III-B); a pair is used once (i < j) and not factorized, as in FuxiCTR.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        hidden_units: list[int] = [64, 64, 64],
        hidden_activations: Activations = "ReLU",
        net_dropout: Rates = 0,
        batch_norm: bool = False,
        product_type: Literal["inner"] = "inner",
        **shared: Any,
    ):
        super().__init__(feature_map, **shared)
        if product_type != "inner":
            raise ValueError(f"product_type must be inner (got {product_type!r})")
        self.inner_product_layer = DotInteraction(feature_map.num_fields)
        self.dnn = MLP_Block(
            input_dim=feature_map.sum_emb_out_dim() + self.inner_product_layer.interaction_units,
            output_dim=1,
            hidden_units=hidden_units,
            hidden_activations=hidden_activations,
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        embeddings = self.embedding_layer(X)
        products = self.inner_product_layer(embeddings)  # [B, F (F - 1) / 2]
        logit = self.dnn(torch.cat([embeddings.flatten(start_dim=1), products], dim=1))
        return {"y_pred": self.output_activation(logit)}
