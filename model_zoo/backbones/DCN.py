from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import CrossNet, FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn


class DCN(BaseModel):
    """A cross network with vector weights, beside an MLP if there are `dnn_hidden_units`.

    Wang et al., "Deep & Cross Network for Ad Click Predictions", ADKDD 2017, equations 3-5.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        model_id: str = "DCN",
        gpu: int = -1,
        learning_rate: float = 1e-3,
        embedding_dim: int = 10,
        dnn_hidden_units: list[int] = [],
        dnn_activations: str | list[str] = "ReLU",
        num_cross_layers: int = 3,
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
        input_dim = final_dim = feature_map.sum_emb_out_dim()
        self.dnn = None
        if dnn_hidden_units:
            self.dnn = MLP_Block(
                input_dim=input_dim,
                hidden_units=dnn_hidden_units,
                hidden_activations=dnn_activations,
                dropout_rates=net_dropout,
                batch_norm=batch_norm,
            )
            final_dim += dnn_hidden_units[-1]
        self.crossnet = CrossNet(input_dim, num_cross_layers)
        self.fc = nn.Linear(final_dim, 1)
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        flat = self.embedding_layer(X, flatten_emb=True)
        final = self.crossnet(flat)
        if self.dnn is not None:
            final = torch.cat([final, self.dnn(flat)], dim=-1)
        return {"y_pred": self.output_activation(self.fc(final))}
