from typing import Any

from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FactorizationMachine, FeatureEmbedding
from fuxictr.pytorch.models import BaseModel
from torch import Tensor


class FM(BaseModel):
    """Factorization machine: first-order weights plus the inner products of all pairs of field embeddings.

    Rendle, "Factorization Machines", ICDM 2010, equation 1.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        model_id: str = "FM",
        gpu: int = -1,
        learning_rate: float = 1e-3,
        embedding_dim: int = 10,
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
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.fm = FactorizationMachine(feature_map)
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        logit = self.fm(X, self.embedding_layer(X))
        return {"y_pred": self.output_activation(logit)}
