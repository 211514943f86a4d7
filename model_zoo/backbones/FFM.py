from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding, LogisticRegression
from torch import Tensor, nn

from .base import Backbone, Regularizer


class FFM(Backbone):
    """A factorization machine in which a field has a separate embedding for each field that it is paired with.

    Juan et al., "Field-aware Factorization Machines for CTR Prediction", RecSys 2016, equation 4, with the linear term
    that the paper leaves out, as in FuxiCTR (whose own class ignores `task`; this one does not).
    """

    embedding_cls = None  # made below, one for each partner field

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        embedding_dim: int = 2,
        regularizer: Regularizer = None,
        **shared: Any,
    ):
        super().__init__(
            feature_map,
            embedding_dim=embedding_dim,
            embedding_regularizer=regularizer,
            net_regularizer=regularizer,
            **shared,
        )
        self.lr_layer = LogisticRegression(feature_map)
        # For the pair i < j, field i is looked up in table j - 1 and field j in table i.
        self.embedding_layers = nn.ModuleList(
            FeatureEmbedding(feature_map, embedding_dim) for _ in range(feature_map.num_fields - 1)
        )
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        logit = self.lr_layer(X)
        tables = [embedding_layer(X) for embedding_layer in self.embedding_layers]  # F - 1 of [B, F, D]
        for i, table in enumerate(tables):
            meets_later = torch.stack([later[:, i] for later in tables[i:]], dim=1)  # [B, F - 1 - i, D]
            logit = logit + (meets_later * table[:, i + 1 :]).sum(dim=(1, 2)).unsqueeze(-1)
        return {"y_pred": self.output_activation(logit)}
