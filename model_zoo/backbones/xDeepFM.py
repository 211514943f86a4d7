from typing import Any

from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import CompressedInteractionNet, FeatureEmbedding, LogisticRegression, MLP_Block
from fuxictr.pytorch.models import BaseModel
from torch import Tensor


class xDeepFM(BaseModel):
    """A compressed interaction network (CIN), an MLP and a linear model, their logits summed.

    Lian et al., "xDeepFM: Combining Explicit and Implicit Feature Interactions for Recommender Systems", KDD 2018,
    equations 6-9; a feature map of the CIN has a bias as well, as in FuxiCTR. No `dnn_hidden_units`: no MLP.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        model_id: str = "xDeepFM",
        gpu: int = -1,
        learning_rate: float = 1e-3,
        embedding_dim: int = 10,
        dnn_hidden_units: list[int] = [64, 64, 64],
        dnn_activations: str | list[str] = "ReLU",
        cin_hidden_units: list[int] = [16, 16, 16],
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
        if not cin_hidden_units:
            raise ValueError(f"cin_hidden_units must be a list of at least one width (got {cin_hidden_units!r})")
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.dnn = None
        if dnn_hidden_units:
            self.dnn = MLP_Block(
                input_dim=feature_map.sum_emb_out_dim(),
                output_dim=1,
                hidden_units=dnn_hidden_units,
                hidden_activations=dnn_activations,
                dropout_rates=net_dropout,
                batch_norm=batch_norm,
            )
        self.lr_layer = LogisticRegression(feature_map, use_bias=False)
        self.cin = CompressedInteractionNet(feature_map.num_fields, cin_hidden_units)
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        embeddings = self.embedding_layer(X)
        logit = self.lr_layer(X) + self.cin(embeddings)
        if self.dnn is not None:
            logit = logit + self.dnn(embeddings.flatten(start_dim=1))
        return {"y_pred": self.output_activation(logit)}
