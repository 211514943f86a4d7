from typing import Any

from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import LogisticRegression
from torch import Tensor

from .base import Backbone, Regularizer


class LR(Backbone):
    """Logistic regression: one weight per feature and a bias.

    McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013, section 3 (the model, not FTRL).
    """

    embedding_cls = None  # it has one weight a feature, no embeddings

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        regularizer: Regularizer = None,
        **shared: Any,
    ):
        super().__init__(feature_map, embedding_regularizer=regularizer, net_regularizer=regularizer, **shared)
        self.lr_layer = LogisticRegression(feature_map)
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        logit = self.lr_layer(self.get_inputs(inputs))
        return {"y_pred": self.output_activation(logit)}
