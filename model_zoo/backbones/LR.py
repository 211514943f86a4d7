from typing import Any

from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import LogisticRegression
from fuxictr.pytorch.models import BaseModel
from torch import Tensor


class LR(BaseModel):
    """Logistic regression: one weight per feature and a bias.

    McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013, section 3 (the model, not FTRL).
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        model_id: str = "LR",
        gpu: int = -1,
        learning_rate: float = 1e-3,
        regularizer: float | str | None = None,
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
        self.lr_layer = LogisticRegression(feature_map)
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        logit = self.lr_layer(self.get_inputs(inputs))
        return {"y_pred": self.output_activation(logit)}
