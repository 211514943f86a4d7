from typing import Any, Literal

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import (
    BilinearInteractionV2,
    LogisticRegression,
    MLP_Block,
    SqueezeExcitation,
)
from torch import Tensor

from .base import Activations, Backbone, Rates

BILINEAR_TYPES = ("field_all", "field_each", "field_interaction")
EXCITATIONS = ("relu", "sigmoid")


class FiBiNET(Backbone):
    """An MLP over bilinear products of all pairs of fields, of the embeddings and of those reweighted by a SENET.

    Huang et al., "FiBiNET: Combining Feature Importance and Bilinear feature Interaction for Click-Through Rate
    Prediction", RecSys 2019: its SENET, bilinear-interaction, combination and output layers. As in FuxiCTR, both
    bilinear layers are of one type, and the wide part has no bias of its own.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        hidden_units: list[int] = [],
        hidden_activations: Activations = "ReLU",
        excitation_activation: str = "ReLU",
        reduction_ratio: float = 3,
        bilinear_type: Literal["field_all", "field_each", "field_interaction"] = "field_interaction",
        net_dropout: Rates = 0,
        batch_norm: bool = False,
        **shared: Any,
    ):
        super().__init__(feature_map, **shared)
        if bilinear_type not in BILINEAR_TYPES:
            raise ValueError(f"bilinear_type must be one of {', '.join(BILINEAR_TYPES)} (got {bilinear_type!r})")
        if excitation_activation.lower() not in EXCITATIONS:
            raise ValueError(
                f"excitation_activation must be one of {', '.join(EXCITATIONS)} (got {excitation_activation!r})"
            )
        if reduction_ratio <= 0:
            raise ValueError(f"reduction_ratio must be positive (got {reduction_ratio})")
        num_fields = feature_map.num_fields
        self.senet_layer = SqueezeExcitation(num_fields, reduction_ratio, excitation_activation)
        self.bilinear_interaction1 = BilinearInteractionV2(num_fields, self.embedding_dim, bilinear_type)
        self.bilinear_interaction2 = BilinearInteractionV2(num_fields, self.embedding_dim, bilinear_type)
        self.lr_layer = LogisticRegression(feature_map, use_bias=False)
        self.dnn = MLP_Block(
            input_dim=num_fields * (num_fields - 1) * self.embedding_dim,
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
        reweighted = self.senet_layer(embeddings)
        pairs = self.bilinear_interaction1(embeddings)  # [B, F (F - 1) / 2, D]
        reweighted_pairs = self.bilinear_interaction2(reweighted)
        logit = self.lr_layer(X) + self.dnn(torch.cat([pairs, reweighted_pairs], dim=1).flatten(start_dim=1))
        return {"y_pred": self.output_activation(logit)}
