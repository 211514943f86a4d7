from typing import Any

from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import DIN_Attention, FeatureEmbeddingDict, MLP_Block
from torch import Tensor, nn

from ..sequence_fields import Fields, check_pooled, concat_fields, field_pairs
from .base import Activations, Backbone, Rates


class DIN(Backbone):
    """The user's history, summed with weights for the likeness of each item to the target, and an MLP on top.

    Zhou et al., "Deep Interest Network for Click-Through Rate Prediction", KDD 2018, equation 3. As in FuxiCTR, the
    weights come from the two embeddings, their difference and their product, where the paper has an outer product,
    and Dice counts padding in its statistics of a training batch.
    """

    embedding_cls = FeatureEmbeddingDict

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        dnn_hidden_units: list[int] = [512, 128, 64],
        dnn_activations: Activations = "ReLU",
        attention_hidden_units: list[int] = [64],
        attention_hidden_activations: Activations = "Dice",
        attention_output_activation: str | None = None,
        attention_dropout: Rates = 0,
        net_dropout: Rates = 0,
        batch_norm: bool = False,
        din_target_field: Fields = [("item_id", "cate_id")],
        din_sequence_field: Fields = [("click_history", "cate_history")],
        din_use_softmax: bool = False,
        **shared: Any,
    ):
        super().__init__(feature_map, **shared)
        self.pairs = field_pairs(feature_map, din_target_field=din_target_field, din_sequence_field=din_sequence_field)
        check_pooled(feature_map, [name for _, sequence in self.pairs for name in sequence])
        self.attention_layers = nn.ModuleList(
            DIN_Attention(
                self.embedding_dim * len(target),
                attention_units=attention_hidden_units,
                hidden_activations=attention_hidden_activations,
                output_activation=attention_output_activation,
                dropout_rate=attention_dropout,
                use_softmax=din_use_softmax,
            )
            for target, _ in self.pairs
        )
        self.dnn = MLP_Block(
            input_dim=feature_map.sum_emb_out_dim(),
            output_dim=1,
            hidden_units=dnn_hidden_units,
            hidden_activations=dnn_activations,
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        embeddings = self.embedding_layer(X)
        for (target, sequence), attention in zip(self.pairs, self.attention_layers, strict=True):
            real = X[sequence[0]] != 0
            pooled = attention(concat_fields(embeddings, target), concat_fields(embeddings, sequence), real)
            embeddings.update(zip(sequence, pooled.split(self.embedding_dim, dim=-1), strict=True))
        logit = self.dnn(self.embedding_layer.dict2tensor(embeddings, flatten_emb=True))
        return {"y_pred": self.output_activation(logit)}
