from typing import Any

from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import LogisticRegression, MLP_Block
from torch import Tensor

from .base import Activations, Backbone, Rates


class WideDeep(Backbone):
    """A linear model and an MLP over the field embeddings, their logits summed.

    Cheng et al., "Wide & Deep Learning for Recommender Systems", DLRS 2016, equation 3; the wide part has no
    cross products (equation 1), as in FuxiCTR, and the bias is the MLP's last.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        hidden_units: list[int] = [64, 64, 64],
        hidden_activations: Activations = "ReLU",
        net_dropout: Rates = 0,
        batch_norm: bool = False,
        **shared: Any,
    ):
        super().__init__(feature_map, **shared)
        self.lr_layer = LogisticRegression(feature_map, use_bias=False)
        self.dnn = MLP_Block(
            input_dim=feature_map.sum_emb_out_dim(),
            output_dim=1,
            hidden_units=hidden_units,
            hidden_activations=hidden_activations,
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        logit = self.lr_layer(X) + self.dnn(self.embedding_layer(X, flatten_emb=True))
        return {"y_pred": self.output_activation(logit)}
