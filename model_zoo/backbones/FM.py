from typing import Any

from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FactorizationMachine
from torch import Tensor

from .base import Backbone, Regularizer


class FM(Backbone):
    """Factorization machine: first-order weights plus the inner products of all pairs of field embeddings.

    Rendle, "Factorization Machines", ICDM 2010, equation 1.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        regularizer: Regularizer = None,
        **shared: Any,
    ):
        super().__init__(feature_map, embedding_regularizer=regularizer, net_regularizer=regularizer, **shared)
        self.fm = FactorizationMachine(feature_map)
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        logit = self.fm(X, self.embedding_layer(X))
        return {"y_pred": self.output_activation(logit)}
