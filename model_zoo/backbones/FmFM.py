from typing import Any, Literal

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import LogisticRegression
from torch import Tensor, nn

from .base import Backbone, Regularizer


class FmFM(Backbone):
    """A factorization machine with a matrix (or a vector) per pair of fields.

    Sun et al., "FM2: Field-matrixed Factorization Machines for Recommender Systems", WWW 2021, equation 6.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        regularizer: Regularizer = None,
        field_interaction_type: Literal["vectorized", "matrixed"] = "matrixed",
        **shared: Any,
    ):
        super().__init__(feature_map, embedding_regularizer=regularizer, net_regularizer=regularizer, **shared)
        if field_interaction_type not in ("vectorized", "matrixed"):
            raise ValueError(f"field_interaction_type must be vectorized or matrixed (got {field_interaction_type!r})")
        self.field_interaction_type = field_interaction_type
        num_fields = feature_map.num_fields
        num_pairs = num_fields * (num_fields - 1) // 2
        weight_dims = [self.embedding_dim] if field_interaction_type == "vectorized" else [self.embedding_dim] * 2
        self.interaction_weight = nn.Parameter(torch.empty(num_pairs, *weight_dims))
        nn.init.xavier_normal_(self.interaction_weight)
        self.lr_layer = LogisticRegression(feature_map)
        self.register_buffer("pairs", torch.triu_indices(num_fields, num_fields, offset=1), persistent=False)
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        embeddings = self.embedding_layer(X)
        left, right = embeddings[:, self.pairs[0]], embeddings[:, self.pairs[1]]  # [B, P, D]
        if self.field_interaction_type == "vectorized":
            left = left * self.interaction_weight
        else:
            left = torch.einsum("bpd,pde->bpe", left, self.interaction_weight)
        logit = (left * right).sum(dim=(1, 2)).unsqueeze(-1) + self.lr_layer(X)
        return {"y_pred": self.output_activation(logit)}
