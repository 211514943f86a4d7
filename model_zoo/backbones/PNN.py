from typing import Any, Literal

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding, InnerProductInteraction, MLP_Block
from fuxictr.pytorch.models import BaseModel
from torch import Tensor


class PNN(BaseModel):
    """An MLP over the field embeddings and the inner products of all pairs of them.

    Qu et al., "Product-based Neural Networks for User Response Prediction", ICDM 2016, equations 1-3 with inner
    products (IPNN, section III-B); a pair is used once (i < j) and not factorized, as in FuxiCTR.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        model_id: str = "PNN",
        gpu: int = -1,
        learning_rate: float = 1e-3,
        embedding_dim: int = 10,
        hidden_units: list[int] = [64, 64, 64],
        hidden_activations: str | list[str] = "ReLU",
        net_dropout: float | list[float] = 0,
        batch_norm: bool = False,
        product_type: Literal["inner"] = "inner",
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
        if product_type != "inner":
            raise ValueError(f"product_type must be inner (got {product_type!r})")
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.inner_product_layer = InnerProductInteraction(feature_map.num_fields, output="inner_product")
        self.dnn = MLP_Block(
            input_dim=feature_map.sum_emb_out_dim() + self.inner_product_layer.interaction_units,
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
        embeddings = self.embedding_layer(X)
        products = self.inner_product_layer(embeddings)  # [B, F (F - 1) / 2]
        logit = self.dnn(torch.cat([embeddings.flatten(start_dim=1), products], dim=1))
        return {"y_pred": self.output_activation(logit)}
