import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbeddingDict, MLP_Block
from torch import Tensor, nn

from ..sequence_fields import Fields, check_pooled, concat_fields, field_pairs, other_embeddings
from .base import Activations, Backbone

POOLINGS = ("mean", "sum", "target", "concat")


class BST(Backbone):
    """A transformer over the user's history followed by the target item, and an MLP on top.

    Chen et al., "Behavior Sequence Transformer for E-commerce Recommendation in Alibaba", DLP-KDD 2019, section 2,
    equations 1-6. As in FuxiCTR, a position is the index in the padded sequence, where the paper takes the time
    that has passed, and `concat` gives the MLP the outputs at padded positions too.
    """

    embedding_cls = FeatureEmbeddingDict

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        dnn_hidden_units: list[int] = [256, 128, 64],
        dnn_activations: Activations = "ReLU",
        num_heads: int = 2,
        stacked_transformer_layers: int = 1,
        attention_dropout: float = 0,
        net_dropout: float = 0,
        batch_norm: bool = False,
        layer_norm: bool = True,
        use_residual: bool = True,
        bst_target_field: Fields = [("item_id", "cate_id")],
        bst_sequence_field: Fields = [("click_history", "cate_history")],
        seq_pooling_type: Literal["mean", "sum", "target", "concat"] = "mean",
        use_position_emb: bool = True,
        use_causal_mask: bool = False,
        **shared: Any,
    ):
        super().__init__(feature_map, **shared)
        if seq_pooling_type not in POOLINGS:
            raise ValueError(f"seq_pooling_type must be one of {', '.join(POOLINGS)} (got {seq_pooling_type!r})")
        self.pairs = field_pairs(feature_map, bst_target_field=bst_target_field, bst_sequence_field=bst_sequence_field)
        self.sequences = [name for _, sequence in self.pairs for name in sequence]
        check_pooled(feature_map, self.sequences)
        self.seq_pooling_type, self.use_causal_mask, self.num_heads = seq_pooling_type, use_causal_mask, num_heads
        self.transformer_encoders = nn.ModuleList()
        width_of_mlp = feature_map.sum_emb_out_dim() - self.embedding_dim * len(self.sequences)
        for _, sequence in self.pairs:
            length = feature_map.features[sequence[0]]["max_len"] + 1
            width = self.embedding_dim * (len(sequence) + int(use_position_emb))
            if width % num_heads:
                raise ValueError(f"num_heads must divide the transformer's width {width} (got {num_heads})")
            position_dim = self.embedding_dim if use_position_emb else 0
            blocks = [
                TransformerBlock(width, num_heads, attention_dropout, net_dropout, layer_norm, use_residual)
                for _ in range(stacked_transformer_layers)
            ]
            self.transformer_encoders.append(BehaviorTransformer(blocks, length, position_dim))
            width_of_mlp += width * (length if seq_pooling_type == "concat" else 1)
        self.dnn = MLP_Block(
            input_dim=width_of_mlp,
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
        pooled = []
        for (target, sequence), transformer in zip(self.pairs, self.transformer_encoders, strict=True):
            history, last = concat_fields(embeddings, sequence), concat_fields(embeddings, target).unsqueeze(1)
            real = nn.functional.pad(X[sequence[0]] != 0, (0, 1), value=True)  # [B, L + 1]
            states = transformer(torch.cat([history, last], dim=1), self._attention_mask(real))
            pooled.append(self._pooled(states, real))
        parts = [*other_embeddings(self.feature_map, embeddings, self.sequences), *pooled]
        return {"y_pred": self.output_activation(self.dnn(torch.cat(parts, dim=-1)))}

    def _attention_mask(self, real: Tensor) -> Tensor:
        """`[B * heads, L, L]`, true where a position must not attend: padding but itself, and later ones if causal."""
        length = real.shape[1]
        itself = torch.eye(length, dtype=torch.bool, device=real.device)
        hidden = ~(real.unsqueeze(1) | itself)
        if self.use_causal_mask:
            hidden = hidden | torch.ones_like(itself).triu(diagonal=1)
        return hidden.repeat_interleave(self.num_heads, dim=0)

    def _pooled(self, states: Tensor, real: Tensor) -> Tensor:
        """`[B, L, width]` -> `[B, width]`, or `[B, L * width]` for `concat`."""
        if self.seq_pooling_type == "target":
            return states[:, -1]
        if self.seq_pooling_type == "concat":
            return states.flatten(start_dim=1)
        summed = (states * real.unsqueeze(-1)).sum(dim=1)
        return summed / real.sum(dim=1, keepdim=True) if self.seq_pooling_type == "mean" else summed


class BehaviorTransformer(nn.Module):
    """Transformer blocks over `[B, L, fields * D]`, with position embeddings concatenated where `position_dim` > 0."""

    def __init__(self, blocks: Sequence[nn.Module], length: int, position_dim: int):
        super().__init__()
        self.transformer_blocks = nn.ModuleList(blocks)
        self.position_emb = nn.Parameter(sinusoids(length, position_dim)) if position_dim else None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        if self.position_emb is not None:
            x = torch.cat([x, self.position_emb.expand(x.shape[0], -1, -1)], dim=-1)
        for block in self.transformer_blocks:
            x = block(x, mask)
        return x


class TransformerBlock(nn.Module):
    """Attention (equations 1-3) and a feed-forward network, each with dropout, residual and LayerNorm (5 and 6)."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        attention_dropout: float,
        net_dropout: float,
        layer_norm: bool,
        use_residual: bool,
    ):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, num_heads, dropout=attention_dropout, batch_first=True)
        self.ffn = nn.Sequential(nn.Linear(width, width), nn.LeakyReLU(), nn.Linear(width, width))
        self.use_residual = use_residual
        self.dropout1, self.dropout2 = nn.Dropout(net_dropout), nn.Dropout(net_dropout)
        self.layer_norm1 = nn.LayerNorm(width) if layer_norm else nn.Identity()
        self.layer_norm2 = nn.LayerNorm(width) if layer_norm else nn.Identity()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        attended = self.dropout1(self.attention(x, x, x, attn_mask=mask, need_weights=False)[0])
        x = self.layer_norm1(attended + x if self.use_residual else attended)
        changed = self.dropout2(self.ffn(x))
        return self.layer_norm2(changed + x if self.use_residual else changed)


def sinusoids(length: int, width: int) -> Tensor:
    """Initial position embeddings, sines and cosines, `[L, width]` (Vaswani et al., 2017, section 3.5)."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(length).unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(start_dim=1)[:, :width]
