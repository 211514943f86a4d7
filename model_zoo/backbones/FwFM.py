from typing import Any, Literal

from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding
from torch import Tensor, nn

from ..dot_interaction import DotInteraction
from .base import Backbone, Regularizer


class FwFM(Backbone):
    """A factorization machine with one weight per pair of fields.

    Pan et al., "Field-weighted Factorization Machines for Click-Through Rate Prediction in Display
    Advertising", WWW 2018, equation 5; the linear term is equation 8 (`FeLV`), 9 (`FiLV`) or plain (`LW`).
    """

    embedding_cls = None  # made below: FuxiCTR draws the weights of pairs first

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        regularizer: Regularizer = None,
        linear_type: Literal["LW", "FeLV", "FiLV"] = "FiLV",
        **shared: Any,
    ):
        super().__init__(feature_map, embedding_regularizer=regularizer, net_regularizer=regularizer, **shared)
        num_fields = feature_map.num_fields
        self.linear_type = linear_type
        self.interaction_weight = nn.Linear(num_fields * (num_fields - 1) // 2, 1)
        self.embedding_layer = FeatureEmbedding(feature_map, self.embedding_dim)
        self.inner_product_layer = DotInteraction(num_fields)
        if linear_type == "LW":
            self.linear_weight_layer = FeatureEmbedding(feature_map, 1, use_pretrain=False)
        elif linear_type == "FeLV":
            self.linear_weight_layer = FeatureEmbedding(feature_map, self.embedding_dim)
        elif linear_type == "FiLV":
            self.linear_weight_layer = nn.Linear(num_fields * self.embedding_dim, 1, bias=False)
        else:
            raise ValueError(f"linear_type must be one of LW, FeLV, FiLV (got {linear_type!r})")
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        embeddings = self.embedding_layer(X)
        pairs = self.interaction_weight(self.inner_product_layer(embeddings))
        return {"y_pred": self.output_activation(pairs + self._linear(X, embeddings))}

    def _linear(self, X: dict[str, Tensor], embeddings: Tensor) -> Tensor:
        if self.linear_type == "LW":
            return self.linear_weight_layer(X).sum(dim=1)
        if self.linear_type == "FeLV":
            return (embeddings * self.linear_weight_layer(X)).sum(dim=(1, 2)).unsqueeze(-1)
        return self.linear_weight_layer(embeddings.flatten(start_dim=1))
