from typing import Any, Literal

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.torch_utils import get_activation
from torch import Tensor, nn

from .base import Activations, Backbone, Rates

BLOCK_TYPES = ("1B", "2B")
RESIDUAL_TYPES = ("concat", "sum")


class FinalNet(Backbone):
    """One block of factorized interaction layers, or two blocks that learn from their mean prediction.

    Zhu et al., "FINAL: Factorized Interaction Layer for CTR Prediction", SIGIR 2023: its FINAL layer and block, and
    the self-distillation of two blocks. As in FuxiCTR, a layer has two factors and no activation between them, the
    feature gates are linear, a residual of type `concat` concatenates linear part and product, and zeros in a list of
    dropout rates are skipped, so that the others move to the front.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        block_type: Literal["1B", "2B"] = "2B",
        batch_norm: bool = True,
        use_feature_gating: bool = False,
        block1_hidden_units: list[int] = [64, 64, 64],
        block1_hidden_activations: Activations | None = None,
        block1_dropout: Rates = 0,
        block2_hidden_units: list[int] = [64, 64, 64],
        block2_hidden_activations: Activations | None = None,
        block2_dropout: Rates = 0,
        residual_type: Literal["concat", "sum"] = "concat",
        **shared: Any,
    ):
        super().__init__(feature_map, **shared)
        if block_type not in BLOCK_TYPES:
            raise ValueError(f"block_type must be one of {', '.join(BLOCK_TYPES)} (got {block_type!r})")
        if residual_type not in RESIDUAL_TYPES:
            raise ValueError(f"residual_type must be one of {', '.join(RESIDUAL_TYPES)} (got {residual_type!r})")
        input_dim = self.embedding_dim * feature_map.num_fields
        self.feature_gating = FeatureGating(feature_map.num_fields) if use_feature_gating else None

        def block(name: str, width: int, units: list[int], activations: Any, dropout: Any) -> FinalBlock:
            return FinalBlock(name, width, units, activations, dropout, batch_norm, residual_type)

        gated_dim = input_dim * 2 if use_feature_gating else input_dim
        self.block1 = block("block1", gated_dim, block1_hidden_units, block1_hidden_activations, block1_dropout)
        self.fc1 = nn.Linear(block1_hidden_units[-1], 1)
        self.block2 = None
        if block_type == "2B":
            self.block2 = block("block2", input_dim, block2_hidden_units, block2_hidden_activations, block2_dropout)
            self.fc2 = nn.Linear(block2_hidden_units[-1], 1)
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor | None]:
        """`y_pred`, and the logits of both blocks as `y1` and `y2` (None where there is one block)."""
        X = self.get_inputs(inputs)
        embeddings = self.embedding_layer(X)
        gated = embeddings if self.feature_gating is None else self.feature_gating(embeddings)
        logit = self.fc1(self.block1(gated.flatten(start_dim=1)))
        first = second = None
        if self.block2 is not None:
            first, second = logit, self.fc2(self.block2(embeddings.flatten(start_dim=1)))
            logit = 0.5 * (first + second)
        return {"y_pred": self.output_activation(logit), "y1": first, "y2": second}

    def add_loss(self, return_dict: dict[str, Any], y_true: Tensor) -> Tensor:
        """The loss of the prediction; with two blocks also that of each block against the prediction, detached."""
        loss = super().add_loss(return_dict, y_true)
        if self.block2 is not None:
            teacher = return_dict["y_pred"].detach()
            for logit in (return_dict["y1"], return_dict["y2"]):
                loss = loss + self.loss_fn(self.output_activation(logit), teacher, reduction="mean")
        return loss


class FeatureGating(nn.Module):
    """The embeddings, followed by the embeddings times linear gates, `[B, F, D] -> [B, 2 F, D]`."""

    def __init__(self, num_fields: int):
        super().__init__()
        self.linear = nn.Linear(num_fields, num_fields)

    def init_weights(self) -> None:
        """Set all gates to 1; FuxiCTR's `reset_parameters` calls a method of this name."""
        nn.init.zeros_(self.linear.weight)
        nn.init.ones_(self.linear.bias)

    def forward(self, embeddings: Tensor) -> Tensor:
        gates = self.linear(embeddings.transpose(1, 2)).transpose(1, 2)
        return torch.cat([embeddings, embeddings * gates], dim=1)


class FinalBlock(nn.Module):
    """FINAL layers, each followed by BatchNorm, activation and dropout, `[B, input_dim] -> [B, hidden_units[-1]]`."""

    def __init__(
        self,
        name: str,
        input_dim: int,
        hidden_units: list[int],
        activations: Activations | None,
        dropout: Rates,
        batch_norm: bool,
        residual_type: str,
    ):
        super().__init__()
        depth = len(hidden_units)
        if not depth:
            raise ValueError(f"{name}_hidden_units must name a layer or more (got {hidden_units})")
        if residual_type == "concat" and any(units % 2 for units in hidden_units):
            raise ValueError(f"{name}_hidden_units must be even where residual_type is concat (got {hidden_units})")
        functions: list[str | None] = [*activations] if isinstance(activations, list) else [activations] * depth
        dropout = dropout if isinstance(dropout, list) else [dropout] * depth
        for key, values in ((f"{name}_hidden_activations", functions), (f"{name}_dropout", dropout)):
            if len(values) != depth:
                raise ValueError(f"{key} must be one value, or one for each of the {depth} layers (got {values})")
        widths = [input_dim, *hidden_units]
        self.layer = nn.ModuleList(FactorizedInteraction(widths[i], widths[i + 1], residual_type) for i in range(depth))
        self.norm = nn.ModuleList(nn.BatchNorm1d(units) for units in hidden_units if batch_norm)
        self.activation = nn.ModuleList(map(get_activation, functions, hidden_units))
        self.dropout = nn.ModuleList(nn.Dropout(rate) for rate in dropout if rate > 0)

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layer):
            x = layer(x)
            if i < len(self.norm):
                x = self.norm[i](x)
            if self.activation[i] is not None:
                x = self.activation[i](x)
            if i < len(self.dropout):
                x = self.dropout[i](x)
        return x


class FactorizedInteraction(nn.Module):
    """`h1 + h1 * h2` (or `[h1, h1 * h2]`) of two linear maps h1 and h2, `[B, input_dim] -> [B, output_dim]`."""

    def __init__(self, input_dim: int, output_dim: int, residual_type: str):
        super().__init__()
        self.residual_type = residual_type
        self.linear = nn.Linear(input_dim, output_dim if residual_type == "concat" else 2 * output_dim)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.linear(x).chunk(2, dim=-1)
        product = first * second
        return torch.cat([first, product], dim=-1) if self.residual_type == "concat" else first + product
