from typing import Any

from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding, LogisticRegression
from torch import Tensor, nn

from .base import Backbone, Regularizer


class HOFM(Backbone):
    """A factorization machine of the products of 2, 3, ... `order` field embeddings, with embeddings for each order.

    Blondel et al., "Higher-Order Factorization Machines", NIPS 2016, equation 2; `reuse_embedding` shares one
    embedding among the orders (section 5). `embedding_dropout` does nothing, as in FuxiCTR.
    """

    embedding_cls = None  # made below, one for each order

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        order: int = 3,
        embedding_dim: int | list[int] = 10,
        reuse_embedding: bool = False,
        embedding_dropout: float = 0,
        regularizer: Regularizer = None,
        **shared: Any,
    ):
        super().__init__(feature_map, embedding_regularizer=regularizer, net_regularizer=regularizer, **shared)
        num_fields = feature_map.num_fields
        if not isinstance(order, int) or not 2 <= order <= num_fields:
            raise ValueError(f"order must be an integer from 2 to {num_fields}, the number of fields (got {order!r})")
        self.order = order
        self.reuse_embedding = reuse_embedding
        if reuse_embedding:
            if not isinstance(embedding_dim, int):
                raise ValueError(f"embedding_dim must be one integer with reuse_embedding (got {embedding_dim!r})")
            self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        else:
            dims = embedding_dim if isinstance(embedding_dim, list) else [embedding_dim] * (order - 1)
            if len(dims) != order - 1:
                raise ValueError(f"embedding_dim must be an integer or a list of {order - 1}, order - 1 (got {dims})")
            self.embedding_layers = nn.ModuleList(FeatureEmbedding(feature_map, dim) for dim in dims)
        self.lr_layer = LogisticRegression(feature_map)
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        logit = self.lr_layer(X)
        shared = self.embedding_layer(X) if self.reuse_embedding else None
        for order in range(2, self.order + 1):
            embeddings = self.embedding_layers[order - 2](X) if shared is None else shared
            logit = logit + anova(embeddings, order)
        return {"y_pred": self.output_activation(logit)}


def anova(embeddings: Tensor, order: int) -> Tensor:
    """The products of all sets of `order` fields, summed, `[B, F, D] -> [B, 1]` (the ANOVA kernel of section 3).

    `ending[:, j]` sums the products that end with field `size + j`, so the cost is linear in F; listing the sets
    is not.
    """
    ending = embeddings
    for size in range(1, order):
        ending = embeddings[:, size:] * ending.cumsum(dim=1)[:, :-1]
    return ending.sum(dim=(1, 2)).unsqueeze(-1)
