from typing import Any

from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FactorizationMachine, MLP_Block
from torch import Tensor

from .base import Activations, Backbone, Rates


class DeepFM(Backbone):
    """A factorization machine and an MLP over the same embeddings, their logits summed.

    Guo et al., "DeepFM: A Factorization-Machine based Neural Network for CTR Prediction", IJCAI 2017, equation 1.
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
        self.fm = FactorizationMachine(feature_map)
        self.mlp = MLP_Block(
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
        embeddings = self.embedding_layer(X)
        logit = self.fm(X, embeddings) + self.mlp(embeddings.flatten(start_dim=1))
        return {"y_pred": self.output_activation(logit)}
