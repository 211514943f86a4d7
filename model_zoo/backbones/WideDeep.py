from typing import Any

from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding, LogisticRegression, MLP_Block
from fuxictr.pytorch.models import BaseModel
from torch import Tensor


class WideDeep(BaseModel):
    """A linear model and an MLP over the field embeddings, their logits summed.

    Cheng et al., "Wide & Deep Learning for Recommender Systems", DLRS 2016, equation 3; the wide part has no
    cross products (equation 1), as in FuxiCTR, and the bias is the MLP's last.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        model_id: str = "WideDeep",
        gpu: int = -1,
        learning_rate: float = 1e-3,
        embedding_dim: int = 10,
        hidden_units: list[int] = [64, 64, 64],
        hidden_activations: str | list[str] = "ReLU",
        net_dropout: float | list[float] = 0,
        batch_norm: bool = False,
        embedding_regularizer: float | str | None = None,
        net_regularizer: float | str | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            feature_map,
            model_id=model_id,
            gpu=gpu,
            embedding_regularizer=embedding_regularizer,
            net_regularizer=net_regularizer,
            **kwargs,
        )
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.lr_layer = LogisticRegression(feature_map, use_bias=False)
        self.dnn = MLP_Block(
            input_dim=feature_map.sum_emb_out_dim(),
            output_dim=1,
            hidden_units=hidden_units,
            hidden_activations=hidden_activations,
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        logit = self.lr_layer(X) + self.dnn(self.embedding_layer(X, flatten_emb=True))
        return {"y_pred": self.output_activation(logit)}
