from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from torch import Tensor, nn

from .base import Activations, Backbone, Rates


class FinalMLP(Backbone):
    """Two MLPs over features that are gated in two ways, fused by a multi-head bilinear layer.

    Mao et al., "FinalMLP: An Enhanced Two-Stream MLP Model for CTR Prediction", AAAI 2023, equations 2-9.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        mlp1_hidden_units: list[int] = [64, 64, 64],
        mlp1_hidden_activations: Activations = "ReLU",
        mlp1_dropout: Rates = 0,
        mlp1_batch_norm: bool = False,
        mlp2_hidden_units: list[int] = [64, 64, 64],
        mlp2_hidden_activations: Activations = "ReLU",
        mlp2_dropout: Rates = 0,
        mlp2_batch_norm: bool = False,
        use_fs: bool = True,
        fs_hidden_units: list[int] = [64],
        fs1_context: list[str] = [],
        fs2_context: list[str] = [],
        num_heads: int = 1,
        **shared: Any,
    ):
        super().__init__(feature_map, **shared)
        feature_dim = feature_map.sum_emb_out_dim()
        self.mlp1 = MLP_Block(
            input_dim=feature_dim,
            hidden_units=mlp1_hidden_units,
            hidden_activations=mlp1_hidden_activations,
            dropout_rates=mlp1_dropout,
            batch_norm=mlp1_batch_norm,
        )
        self.mlp2 = MLP_Block(
            input_dim=feature_dim,
            hidden_units=mlp2_hidden_units,
            hidden_activations=mlp2_hidden_activations,
            dropout_rates=mlp2_dropout,
            batch_norm=mlp2_batch_norm,
        )
        self.use_fs = use_fs
        if use_fs:
            self.fs_module = FeatureSelection(
                feature_map, feature_dim, self.embedding_dim, fs_hidden_units, fs1_context, fs2_context
            )
        self.fusion_module = BilinearFusion(mlp1_hidden_units[-1], mlp2_hidden_units[-1], num_heads)
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        flat = first = second = self.embedding_layer(X, flatten_emb=True)
        if self.use_fs:
            first, second = self.fs_module(X, flat)
        logit = self.fusion_module(self.mlp1(first), self.mlp2(second))
        return {"y_pred": self.output_activation(logit)}


class FeatureSelection(nn.Module):
    """Feature selection of both streams: `2 sigmoid(MLP(context)) * features` (equations 5-6).

    A stream's context is the embeddings of its context fields, or a learnt vector if it has none. Parameters have
    FuxiCTR's names and are drawn in its order, so that its own class loads a checkpoint.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        feature_dim: int,
        embedding_dim: int,
        hidden_units: list[int],
        fs1_context: list[str],
        fs2_context: list[str],
    ):
        super().__init__()
        self.contexts = {"fs1": fs1_context, "fs2": fs2_context}
        for stream, fields in self.contexts.items():
            if fields:
                embedding = FeatureEmbedding(feature_map, embedding_dim, required_feature_columns=fields)
                self.add_module(f"{stream}_ctx_emb", embedding)
            else:
                self.register_parameter(f"{stream}_ctx_bias", nn.Parameter(torch.zeros(1, embedding_dim)))
        for stream, fields in self.contexts.items():
            gate = MLP_Block(
                input_dim=embedding_dim * max(1, len(fields)),
                output_dim=feature_dim,
                hidden_units=hidden_units,
                output_activation="Sigmoid",
            )
            self.add_module(f"{stream}_gate", gate)

    def forward(self, X: dict[str, Tensor], flat: Tensor) -> tuple[Tensor, Tensor]:
        return self._selected("fs1", X, flat), self._selected("fs2", X, flat)

    def _selected(self, stream: str, X: dict[str, Tensor], flat: Tensor) -> Tensor:
        if self.contexts[stream]:
            context = getattr(self, f"{stream}_ctx_emb")(X, flatten_emb=True)
        else:
            context = getattr(self, f"{stream}_ctx_bias")
        return flat * (2 * getattr(self, f"{stream}_gate")(context))


class BilinearFusion(nn.Module):
    """`w_x x + w_y y + sum_h x_h W_h y_h`, `[B, x_dim], [B, y_dim] -> [B, 1]` (equations 7-9)."""

    def __init__(self, x_dim: int, y_dim: int, num_heads: int):
        super().__init__()
        if x_dim % num_heads or y_dim % num_heads:
            raise ValueError(f"both last hidden units ({x_dim}, {y_dim}) must be divisible by num_heads ({num_heads})")
        self.num_heads = num_heads
        self.w_x = nn.Linear(x_dim, 1)
        self.w_y = nn.Linear(y_dim, 1)
        # One flat column, as FuxiCTR draws it: the Xavier bound depends on the shape.
        self.w_xy = nn.Parameter(torch.empty(x_dim * y_dim // num_heads, 1))
        nn.init.xavier_normal_(self.w_xy)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x_heads = x.unflatten(-1, (self.num_heads, -1))  # [B, heads, x_dim / heads]
        y_heads = y.unflatten(-1, (self.num_heads, -1))
        weight = self.w_xy.view(self.num_heads, x_heads.shape[-1], y_heads.shape[-1])
        bilinear = torch.einsum("bhi,hij,bhj->b", x_heads, weight, y_heads)
        return self.w_x(x) + self.w_y(y) + bilinear.unsqueeze(-1)
