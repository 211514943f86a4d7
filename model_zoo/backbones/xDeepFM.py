from typing import Any

from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import CompressedInteractionNet, LogisticRegression, MLP_Block
from torch import Tensor

from .base import Activations, Backbone, Rates


class xDeepFM(Backbone):
    """A compressed interaction network (CIN), an MLP and a linear model, their logits summed.

    Lian et al., "xDeepFM: Combining Explicit and Implicit Feature Interactions for Recommender Systems", KDD 2018,
    equations 6-9; a feature map of the CIN has a bias as well, as in FuxiCTR. No `dnn_hidden_units`: no MLP.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        dnn_hidden_units: list[int] = [64, 64, 64],
        dnn_activations: Activations = "ReLU",
        cin_hidden_units: list[int] = [16, 16, 16],
        net_dropout: Rates = 0,
        batch_norm: bool = False,
        **shared: Any,
    ):
        super().__init__(feature_map, **shared)
        if not cin_hidden_units:
            raise ValueError(f"cin_hidden_units must be a list of at least one width (got {cin_hidden_units!r})")
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
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        embeddings = self.embedding_layer(X)
        logit = self.lr_layer(X) + self.cin(embeddings)
        if self.dnn is not None:
            logit = logit + self.dnn(embeddings.flatten(start_dim=1))
        return {"y_pred": self.output_activation(logit)}
