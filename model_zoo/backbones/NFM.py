from typing import Any

from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import InnerProductInteraction, LogisticRegression, MLP_Block
from torch import Tensor

from .base import Activations, Backbone, Rates


class NFM(Backbone):
    """An MLP over the sum of the element-wise products of all pairs of field embeddings, plus a linear term.

    He and Chua, "Neural Factorization Machines for Sparse Predictive Analytics", SIGIR 2017, equations 3-7.
    `embedding_dropout` does nothing, as in FuxiCTR; the bias is the MLP's last.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        hidden_units: list[int] = [64, 64, 64],
        hidden_activations: Activations = "ReLU",
        embedding_dropout: float = 0,
        net_dropout: Rates = 0,
        batch_norm: bool = False,
        **shared: Any,
    ):
        super().__init__(feature_map, **shared)
        self.lr_layer = LogisticRegression(feature_map, use_bias=False)
        self.bi_pooling_layer = InnerProductInteraction(feature_map.num_fields, output="bi_interaction")
        self.dnn = MLP_Block(
            input_dim=self.embedding_dim,
            output_dim=1,
            hidden_units=hidden_units,
            hidden_activations=hidden_activations,
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        logit = self.lr_layer(X) + self.dnn(self.bi_pooling_layer(self.embedding_layer(X)))
        return {"y_pred": self.output_activation(logit)}
