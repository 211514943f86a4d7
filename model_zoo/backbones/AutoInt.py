from typing import Any

from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import LogisticRegression, MLP_Block, ScaledDotProductAttention
from torch import Tensor, nn

from .base import Activations, Backbone


class AutoInt(Backbone):
    """Self-attention between the fields, and next to it an MLP (AutoInt+) if `dnn_hidden_units` are given.

    Song et al., "AutoInt: Automatic Feature Interaction Learning via Self-Attentive Neural Networks", CIKM 2019,
    equations 5-9. As in FuxiCTR, the residual is projected only where its width differs.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        dnn_hidden_units: list[int] = [64, 64, 64],
        dnn_activations: Activations = "ReLU",
        attention_layers: int = 2,
        num_heads: int = 1,
        attention_dim: int = 8,
        net_dropout: float = 0,
        batch_norm: bool = False,
        layer_norm: bool = False,
        use_scale: bool = False,
        use_wide: bool = False,
        use_residual: bool = True,
        **shared: Any,
    ):
        super().__init__(feature_map, **shared)
        if attention_layers < 1:
            raise ValueError(f"attention_layers must be 1 or more (got {attention_layers})")
        self.lr_layer = LogisticRegression(feature_map, use_bias=False) if use_wide else None
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
        self.self_attention = nn.Sequential(
            *(
                MultiHeadSelfAttention(
                    input_dim,
                    attention_dim,
                    num_heads,
                    dropout=net_dropout,
                    use_residual=use_residual,
                    use_scale=use_scale,
                    layer_norm=layer_norm,
                )
                for input_dim in [self.embedding_dim] + [attention_dim] * (attention_layers - 1)
            )
        )
        self.fc = nn.Linear(feature_map.num_fields * attention_dim, 1)
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        embeddings = self.embedding_layer(X)
        logit = self.fc(self.self_attention(embeddings).flatten(start_dim=1))
        if self.dnn is not None:
            logit = logit + self.dnn(embeddings.flatten(start_dim=1))
        if self.lr_layer is not None:
            logit = logit + self.lr_layer(X)
        return {"y_pred": self.output_activation(logit)}


class MultiHeadSelfAttention(nn.Module):
    """One interacting layer, `[B, F, input_dim] -> [B, F, attention_dim]` (equations 5-8)."""

    def __init__(
        self,
        input_dim: int,
        attention_dim: int,
        num_heads: int,
        *,
        dropout: float,
        use_residual: bool,
        use_scale: bool,
        layer_norm: bool,
    ):
        super().__init__()
        if attention_dim % num_heads:
            raise ValueError(f"attention_dim ({attention_dim}) must be divisible by num_heads ({num_heads})")
        self.num_heads = num_heads
        self.use_residual = use_residual
        self.scale = (attention_dim // num_heads) ** 0.5 if use_scale else None
        self.W_q = nn.Linear(input_dim, attention_dim, bias=False)
        self.W_k = nn.Linear(input_dim, attention_dim, bias=False)
        self.W_v = nn.Linear(input_dim, attention_dim, bias=False)
        projected = use_residual and input_dim != attention_dim
        self.W_res = nn.Linear(input_dim, attention_dim, bias=False) if projected else None
        self.dot_attention = ScaledDotProductAttention(dropout)
        self.layer_norm = nn.LayerNorm(attention_dim) if layer_norm else None

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self._by_head(project(x)) for project in (self.W_q, self.W_k, self.W_v))
        mixed, _ = self.dot_attention(query, key, value, scale=self.scale)
        out = mixed.transpose(1, 2).flatten(start_dim=2)
        if self.use_residual:
            out = out + (x if self.W_res is None else self.W_res(x))
        if self.layer_norm is not None:
            out = self.layer_norm(out)
        return out.relu()

    def _by_head(self, x: Tensor) -> Tensor:
        """`[B, F, heads * head_dim] -> [B, heads, F, head_dim]`."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
