from typing import Any, Literal

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from torch import Tensor, nn

from ..dot_interaction import DotInteraction
from .base import Activations, Backbone, Rates

INTERACTIONS = ("dot", "cat")


class DLRM(Backbone):
    """An MLP turns the numeric fields into one more embedding; a second MLP reads the dot products of all pairs.

    Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems", 2019, section
    2. FuxiCTR's class takes numeric columns only as float32 `[B, 1]`, ours also as its loaders give them, `[B]`.
    """

    embedding_cls = None  # made below, without the numeric fields

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        top_mlp_units: list[int] = [64, 64, 64],
        bottom_mlp_units: list[int] = [64, 64, 64],
        top_mlp_activations: Activations = "ReLU",
        bottom_mlp_activations: str = "ReLU",
        top_mlp_dropout: Rates = 0,
        bottom_mlp_dropout: Rates = 0,
        interaction_op: Literal["dot", "cat"] = "dot",
        batch_norm: bool = False,
        **shared: Any,
    ):
        super().__init__(feature_map, **shared)
        if interaction_op not in INTERACTIONS:
            raise ValueError(f"interaction_op must be one of {', '.join(INTERACTIONS)} (got {interaction_op!r})")
        if isinstance(bottom_mlp_activations, list):
            raise ValueError(f"bottom_mlp_activations must be one for all layers (got {bottom_mlp_activations})")
        self.dense_feats = [name for name, spec in feature_map.features.items() if spec["type"] == "numeric"]
        num_embedded = feature_map.num_fields - len(self.dense_feats)
        if not num_embedded:
            raise ValueError(f"DLRM needs a field that is not numeric (got {', '.join(self.dense_feats)})")
        self.embedding_layer = FeatureEmbedding(
            feature_map, self.embedding_dim, not_required_feature_columns=self.dense_feats
        )
        if self.dense_feats:
            self.bottom_mlp = MLP_Block(
                input_dim=len(self.dense_feats),
                output_dim=self.embedding_dim,
                hidden_units=bottom_mlp_units,
                hidden_activations=bottom_mlp_activations,
                output_activation=bottom_mlp_activations,
                dropout_rates=bottom_mlp_dropout,
                batch_norm=batch_norm,
            )
        num_vectors = num_embedded + bool(self.dense_feats)
        self.interaction_op = interaction_op
        if interaction_op == "dot":
            interact: nn.Module = DotInteraction(num_vectors)
            top_dim = num_vectors * (num_vectors - 1) // 2 + self.embedding_dim * bool(self.dense_feats)
        else:
            interact = nn.Flatten(start_dim=1)
            top_dim = num_vectors * self.embedding_dim
        self.interact = interact
        self.top_mlp = MLP_Block(
            input_dim=top_dim,
            output_dim=1,
            hidden_units=top_mlp_units,
            hidden_activations=top_mlp_activations,
            output_activation=self.output_activation,
            dropout_rates=top_mlp_dropout,
            batch_norm=batch_norm,
        )
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        vectors = self.embedding_layer(X)
        if not self.dense_feats:
            return {"y_pred": self.top_mlp(self.interact(vectors))}
        dense = self.bottom_mlp(torch.stack([X[name].float().view(-1) for name in self.dense_feats], dim=-1))
        interactions = self.interact(torch.cat([vectors, dense.unsqueeze(1)], dim=1))
        if self.interaction_op == "dot":
            interactions = torch.cat([interactions, dense], dim=-1)
        return {"y_pred": self.top_mlp(interactions)}
