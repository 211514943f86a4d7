from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import MLP_Block
from torch import Tensor, nn

from .base import Activations, Backbone, Rates


class WuKong(Backbone):
    """Stacked layers of a factorization machine and, in parallel, a linear compression of its input.

    Zhang et al., "Wukong: Towards a Scaling Law for Large-Scale Recommendation", ICML 2024, sections 3.2-3.5.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        embedding_dim: int = 64,
        num_wukong_layers: int = 3,
        lcb_features: int = 40,
        fmb_features: int = 40,
        fmb_mlp_units: list[int] = [32, 32],
        fmb_mlp_activations: Activations = "relu",
        fmp_rank_k: int | None = 8,
        mlp_hidden_units: list[int] = [32, 32],
        mlp_hidden_activations: Activations = "relu",
        mlp_batch_norm: bool = True,
        layer_norm: bool = True,
        net_dropout: Rates = 0,
        **shared: Any,
    ):
        super().__init__(feature_map, embedding_dim=embedding_dim, **shared)
        out_features = lcb_features + fmb_features
        in_features = [feature_map.num_fields] + [out_features] * (num_wukong_layers - 1)
        self.wukong_stack = nn.Sequential(
            *(
                WuKongLayer(
                    width,
                    lcb_features,
                    fmb_features,
                    embedding_dim,
                    rank=fmp_rank_k,
                    mlp_units=fmb_mlp_units,
                    mlp_activations=fmb_mlp_activations,
                    dropout=net_dropout,
                    layer_norm=layer_norm,
                )
                for width in in_features
            )
        )
        self.fc = MLP_Block(
            input_dim=out_features * embedding_dim,
            output_dim=1,
            hidden_units=mlp_hidden_units,
            hidden_activations=mlp_hidden_activations,
            batch_norm=mlp_batch_norm,
        )
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        logit = self.fc(self.wukong_stack(self.embedding_layer(X)).flatten(start_dim=1))
        return {"y_pred": self.output_activation(logit)}


class WuKongLayer(nn.Module):
    """`LayerNorm([FMB(x), LCB(x)] + residual(x))`, `[B, in, D] -> [B, fmb + lcb, D]` (equation 1)."""

    def __init__(
        self,
        in_features: int,
        lcb_features: int,
        fmb_features: int,
        embedding_dim: int,
        *,
        rank: int | None,
        mlp_units: list[int],
        mlp_activations: Activations,
        dropout: Rates,
        layer_norm: bool,
    ):
        super().__init__()
        self.fmb = FactorizationMachineBlock(
            in_features, fmb_features, embedding_dim, rank, mlp_units, mlp_activations, dropout
        )
        self.lcb = nn.ModuleDict({"linear": nn.Linear(in_features, lcb_features, bias=False)})
        out_features = fmb_features + lcb_features
        self.residual_proj = nn.Identity() if in_features == out_features else nn.Linear(in_features, out_features)
        self.layer_norm = nn.LayerNorm(embedding_dim) if layer_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        by_dim = x.transpose(1, 2)  # [B, D, in]: the linear maps mix features, not embedding dims
        compressed = self.lcb["linear"](by_dim).transpose(1, 2)
        out = torch.cat([self.fmb(x), compressed], dim=1)
        return self.layer_norm(out + self.residual_proj(by_dim).transpose(1, 2))


class FactorizationMachineBlock(nn.Module):
    """`MLP(LayerNorm(flatten(X X^T Y)))`, `[B, in, D] -> [B, out, D]` (section 3.3); no Y where rank is None."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        embedding_dim: int,
        rank: int | None,
        mlp_units: list[int],
        mlp_activations: Activations,
        dropout: Rates,
    ):
        super().__init__()
        self.shape = (out_features, embedding_dim)
        self.proj_Y = None if rank is None else nn.Parameter(torch.randn(in_features, rank))
        pairs_dim = in_features * (in_features if rank is None else rank)
        self.layer_norm = nn.LayerNorm(pairs_dim)
        self.mlp = MLP_Block(
            input_dim=pairs_dim,
            output_dim=out_features * embedding_dim,
            hidden_units=mlp_units,
            hidden_activations=mlp_activations,
            output_activation="relu",
            dropout_rates=dropout,
        )

    def forward(self, x: Tensor) -> Tensor:
        by_dim = x.transpose(1, 2)
        if self.proj_Y is not None:
            by_dim = by_dim @ self.proj_Y  # [B, D, rank]: cheaper before the product of all pairs
        pairs = torch.bmm(x, by_dim).flatten(start_dim=1)
        return self.mlp(self.layer_norm(pairs)).unflatten(-1, self.shape)
