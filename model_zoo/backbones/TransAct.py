from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import CrossNetV2, FeatureEmbeddingDict, MLP_Block
from torch import Tensor, nn

from ..sequence_fields import (
    Fields,
    check_pooled,
    concat_fields,
    field_pairs,
    other_embeddings,
    packing_order,
    reorder,
)
from .base import Activations, Backbone, Rates


class TransAct(Backbone):
    """A transformer over the user's latest actions, each concatenated with the target, and DCNv2 on top.

    Xia et al., "TransAct: Transformer-based Realtime User Action Model for Recommendation at Pinterest", KDD 2023,
    section 3.3. Histories may be padded on either side; FuxiCTR's class needs padding in front. As in FuxiCTR, an empty
    history counts as one step of padding, and actions have neither types nor times: `use_time_window_mask` is refused.
    """

    embedding_cls = FeatureEmbeddingDict

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        hidden_activations: Activations = "ReLU",
        dcn_cross_layers: int = 3,
        dcn_hidden_units: list[int] = [256, 128, 64],
        mlp_hidden_units: list[int] = [],
        num_heads: int = 1,
        transformer_layers: int = 1,
        transformer_dropout: float = 0,
        dim_feedforward: int = 512,
        embedding_dim: int = 64,
        net_dropout: Rates = 0,
        batch_norm: bool = False,
        target_item_field: Fields = [("item_id", "cate_id")],
        sequence_item_field: Fields = [("click_history", "cate_history")],
        first_k_cols: int = 1,
        use_time_window_mask: bool = False,
        time_window_ms: int = 86400000,
        concat_max_pool: bool = True,
        **shared: Any,
    ):
        super().__init__(feature_map, embedding_dim=embedding_dim, **shared)
        if use_time_window_mask:
            raise ValueError(
                "use_time_window_mask needs the times of actions, which the model does not get: leave it out"
            )
        self.pairs = field_pairs(
            feature_map,
            same_width=False,
            target_item_field=target_item_field,
            sequence_item_field=sequence_item_field,
        )
        self.sequences = [name for _, sequence in self.pairs for name in sequence]
        check_pooled(feature_map, self.sequences)
        self.transformer_encoders = nn.ModuleList()
        width_of_dcn = feature_map.sum_emb_out_dim() - embedding_dim * len(self.sequences)
        for target, sequence in self.pairs:
            width = embedding_dim * (len(target) + len(sequence))
            _check_transformer(width, num_heads, first_k_cols, feature_map.features[sequence[0]]["max_len"])
            layer = nn.TransformerEncoderLayer(
                width, num_heads, dim_feedforward, dropout=transformer_dropout, batch_first=True
            )
            transformer = ActionTransformer(layer, transformer_layers, width, first_k_cols, concat_max_pool)
            self.transformer_encoders.append(transformer)
            width_of_dcn += width * (first_k_cols + int(concat_max_pool))
        self.crossnet = CrossNetV2(width_of_dcn, dcn_cross_layers)
        self.parallel_dnn = MLP_Block(
            input_dim=width_of_dcn,
            hidden_units=dcn_hidden_units,
            hidden_activations=hidden_activations,
            dropout_rates=net_dropout,
            batch_norm=batch_norm,
        )
        self.mlp = MLP_Block(
            input_dim=width_of_dcn + dcn_hidden_units[-1],
            output_dim=1,
            hidden_units=mlp_hidden_units,
            hidden_activations=hidden_activations,
        )
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        embeddings = self.embedding_layer(X)
        parts = other_embeddings(self.feature_map, embeddings, self.sequences)
        for (target, sequence), transformer in zip(self.pairs, self.transformer_encoders, strict=True):
            real = X[sequence[0]] != 0
            order = packing_order(real, at_end=True)
            history = reorder(concat_fields(embeddings, sequence), order)
            parts.append(transformer(concat_fields(embeddings, target), history, real.gather(1, order)))
        x = torch.cat(parts, dim=-1)
        logit = self.mlp(torch.cat([self.crossnet(x), self.parallel_dnn(x)], dim=-1))
        return {"y_pred": self.output_activation(logit)}


class ActionTransformer(nn.Module):
    """The last `k` outputs of the transformer, and a linear layer of their maximum over all steps if `max_pool`."""

    def __init__(self, layer: nn.TransformerEncoderLayer, num_layers: int, width: int, k: int, max_pool: bool):
        super().__init__()
        self.k = k
        # Nested tensors would cut the steps that are padded in all rows.
        self.transformer_encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.out_linear = nn.Linear(width, width) if max_pool else None

    def forward(self, target: Tensor, history: Tensor, real: Tensor) -> Tensor:
        """`[B, target]`, `[B, L, sequence]` and a mask `[B, L]` of real steps, at the end -> `[B, (k + 1) width]`."""
        padded = ~real
        padded[:, -1] = False  # an empty history keeps one step
        x = torch.cat([history, target.unsqueeze(1).expand(-1, history.shape[1], -1)], dim=-1)
        states = self.transformer_encoder(x, src_key_padding_mask=padded)
        parts = [states.masked_fill(padded.unsqueeze(-1), 0.0)[:, -self.k :].flatten(start_dim=1)]
        if self.out_linear is not None:
            parts.append(self.out_linear(states.masked_fill(padded.unsqueeze(-1), -1e9).amax(dim=1)))
        return torch.cat(parts, dim=-1)


def _check_transformer(width: int, num_heads: int, first_k_cols: int, length: int) -> None:
    if width % num_heads:
        raise ValueError(f"num_heads must divide the transformer's width {width} (got {num_heads})")
    if not 1 <= first_k_cols <= length:
        raise ValueError(f"first_k_cols must be between 1 and the sequence's length {length} (got {first_k_cols})")
