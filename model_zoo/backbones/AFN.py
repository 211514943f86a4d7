from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from torch import Tensor, nn

from .base import Activations, Backbone, Rates


class AFN(Backbone):
    """An MLP over products of learnt powers of the embeddings; `ensemble_dnn` adds a second MLP over embeddings (AFN+).

    Cheng et al., "Adaptive Factorization Network: Learning Adaptive-Order Feature Interactions", AAAI 2020: its
    logarithmic transformation layer and ensemble. As in FuxiCTR, embeddings are clipped at 1e-5 (1e-7 in the paper),
    and `batch_norm` is that of the MLPs: logarithms and products are always normalised.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        ensemble_dnn: bool = True,
        dnn_hidden_units: list[int] = [64, 64, 64],
        dnn_activations: Activations = "ReLU",
        dnn_dropout: Rates = 0,
        afn_hidden_units: list[int] = [64, 64, 64],
        afn_activations: Activations = "ReLU",
        afn_dropout: Rates = 0,
        logarithmic_neurons: int = 5,
        batch_norm: bool = True,
        **shared: Any,
    ):
        super().__init__(feature_map, **shared)
        if logarithmic_neurons < 1:
            raise ValueError(f"logarithmic_neurons must be 1 or more (got {logarithmic_neurons})")
        num_fields = feature_map.num_fields
        self.coefficient_W = nn.Linear(num_fields, logarithmic_neurons, bias=False)
        self.dense_layer = MLP_Block(
            input_dim=self.embedding_dim * logarithmic_neurons,
            output_dim=1,
            hidden_units=afn_hidden_units,
            hidden_activations=afn_activations,
            dropout_rates=afn_dropout,
            batch_norm=batch_norm,
        )
        self.log_batch_norm = nn.BatchNorm1d(num_fields)
        self.exp_batch_norm = nn.BatchNorm1d(logarithmic_neurons)
        self.ensemble_dnn = ensemble_dnn
        if ensemble_dnn:
            self.embedding_layer2 = FeatureEmbedding(feature_map, self.embedding_dim)
            self.dnn = MLP_Block(
                input_dim=self.embedding_dim * num_fields,
                output_dim=1,
                hidden_units=dnn_hidden_units,
                hidden_activations=dnn_activations,
                dropout_rates=dnn_dropout,
                batch_norm=batch_norm,
            )
            self.fc = nn.Linear(2, 1)
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        logit = self.dense_layer(self._products_of_powers(self.embedding_layer(X)).flatten(start_dim=1))
        if self.ensemble_dnn:
            deep = self.dnn(self.embedding_layer2(X).flatten(start_dim=1))
            logit = self.fc(torch.cat([logit, deep], dim=-1))
        return {"y_pred": self.output_activation(logit)}

    def _products_of_powers(self, embeddings: Tensor) -> Tensor:
        """`exp(sum_i w_ij ln |e_i|)` for each logarithmic neuron j, `[B, F, D] -> [B, neurons, D]`."""
        logarithms = self.log_batch_norm(embeddings.abs().clamp(min=1e-5).log())
        products = self.coefficient_W(logarithms.transpose(1, 2)).transpose(1, 2).exp()
        return self.exp_batch_norm(products)
