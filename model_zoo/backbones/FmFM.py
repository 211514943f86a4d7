from typing import Any, Literal

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding, LogisticRegression
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn


class FmFM(BaseModel):
    """A factorization machine with a matrix (or a vector) per pair of fields.

    Sun et al., "FM2: Field-matrixed Factorization Machines for Recommender Systems", WWW 2021, equation 6.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        model_id: str = "FmFM",
        gpu: int = -1,
        learning_rate: float = 1e-3,
        embedding_dim: int = 10,
        regularizer: float | str | None = None,
        field_interaction_type: Literal["vectorized", "matrixed"] = "matrixed",
        **kwargs: Any,
    ):
        super().__init__(
            feature_map,
            model_id=model_id,
            gpu=gpu,
            embedding_regularizer=regularizer,
            net_regularizer=regularizer,
            **kwargs,
        )
        if field_interaction_type not in ("vectorized", "matrixed"):
            raise ValueError(f"field_interaction_type must be vectorized or matrixed (got {field_interaction_type!r})")
        self.field_interaction_type = field_interaction_type
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        num_fields = feature_map.num_fields
        num_pairs = num_fields * (num_fields - 1) // 2
        weight_dims = [embedding_dim] if field_interaction_type == "vectorized" else [embedding_dim] * 2
        self.interaction_weight = nn.Parameter(torch.empty(num_pairs, *weight_dims))
        nn.init.xavier_normal_(self.interaction_weight)
        self.lr_layer = LogisticRegression(feature_map)
        self.register_buffer("pairs", torch.triu_indices(num_fields, num_fields, offset=1), persistent=False)
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

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
