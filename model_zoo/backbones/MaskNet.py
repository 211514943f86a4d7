from typing import Any, Literal

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import MLP_Block
from fuxictr.pytorch.torch_utils import get_activation
from torch import Tensor, nn

from .base import Activations, Backbone, Rates

MODEL_TYPES = ("SerialMaskNet", "ParallelMaskNet")


class MaskNet(Backbone):
    """Blocks in series or in parallel, each of which multiplies its input by a mask computed from the embeddings.

    Wang et al., "MaskNet: Introducing Feature-Wise Multiplication to CTR Ranking Models by Instance-Guided Mask",
    DLP-KDD 2021, sections "Instance-Guided Mask", "MaskBlock" and "MaskNet". As in FuxiCTR, `emb_layernorm` and
    `net_layernorm` can switch the paper's normalisations off, `dnn_hidden_units` are the widths of the blocks of a
    serial net and of the MLP of a parallel one, and the activation need not be the paper's ReLU.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        dnn_hidden_units: list[int] = [64, 64, 64],
        dnn_hidden_activations: Activations = "ReLU",
        model_type: Literal["SerialMaskNet", "ParallelMaskNet"] = "SerialMaskNet",
        parallel_num_blocks: int = 1,
        parallel_block_dim: int = 64,
        reduction_ratio: float = 1,
        net_dropout: Rates = 0,
        emb_layernorm: bool = True,
        net_layernorm: bool = True,
        **shared: Any,
    ):
        super().__init__(feature_map, **shared)
        if model_type not in MODEL_TYPES:
            raise ValueError(f"model_type must be one of {', '.join(MODEL_TYPES)} (got {model_type!r})")
        input_dim = feature_map.num_fields * self.embedding_dim
        if model_type == "SerialMaskNet":
            self.mask_net: SerialMaskNet | ParallelMaskNet = SerialMaskNet(
                input_dim,
                dnn_hidden_units,
                dnn_hidden_activations,
                net_dropout,
                reduction_ratio,
                net_layernorm,
                self.output_activation,
            )
        else:
            self.mask_net = ParallelMaskNet(
                input_dim,
                parallel_num_blocks,
                parallel_block_dim,
                dnn_hidden_units,
                dnn_hidden_activations,
                net_dropout,
                reduction_ratio,
                net_layernorm,
                self.output_activation,
            )
        self.emb_norm = None
        if emb_layernorm:
            self.emb_norm = nn.ModuleList(nn.LayerNorm(self.embedding_dim) for _ in range(feature_map.num_fields))
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        embeddings = normed = self.embedding_layer(X)
        if self.emb_norm is not None:
            by_field = zip(self.emb_norm, embeddings.unbind(dim=1), strict=True)
            normed = torch.stack([norm(field) for norm, field in by_field], dim=1)
        return {"y_pred": self.mask_net(embeddings.flatten(start_dim=1), normed.flatten(start_dim=1))}


class SerialMaskNet(nn.Module):
    """Blocks in series, `[B, F * D], [B, F * D] -> [B, 1]`."""

    def __init__(
        self,
        input_dim: int,
        hidden_units: list[int],
        activations: Activations,
        dropout: Rates,
        reduction_ratio: float,
        layer_norm: bool,
        output_activation: nn.Module,
    ):
        super().__init__()
        depth = len(hidden_units)
        activations = activations if isinstance(activations, list) else [activations] * depth
        dropout = dropout if isinstance(dropout, list) else [dropout] * depth
        for name, values in (("dnn_hidden_activations", activations), ("net_dropout", dropout)):
            if len(values) != depth:
                raise ValueError(f"{name} must be one value, or one for each of the {depth} layers (got {values})")
        widths = [input_dim, *hidden_units]
        self.mask_blocks = nn.ModuleList(
            MaskBlock(input_dim, widths[i], widths[i + 1], activations[i], dropout[i], reduction_ratio, layer_norm)
            for i in range(depth)
        )
        self.fc = nn.Sequential(nn.Linear(widths[-1], 1), output_activation)

    def forward(self, embeddings: Tensor, normed: Tensor) -> Tensor:
        hidden = normed
        for block in self.mask_blocks:
            hidden = block(embeddings, hidden)
        return self.fc(hidden)


class ParallelMaskNet(nn.Module):
    """Blocks in parallel, and an MLP over their outputs, `[B, F * D], [B, F * D] -> [B, 1]`."""

    def __init__(
        self,
        input_dim: int,
        num_blocks: int,
        block_dim: int,
        hidden_units: list[int],
        activation: Activations,
        dropout: Rates,
        reduction_ratio: float,
        layer_norm: bool,
        output_activation: nn.Module,
    ):
        super().__init__()
        if num_blocks < 1:
            raise ValueError(f"parallel_num_blocks must be 1 or more (got {num_blocks})")
        wrong = "{} of a ParallelMaskNet must be one value for all layers (got {})"
        if isinstance(activation, list):
            raise ValueError(wrong.format("dnn_hidden_activations", activation))
        if isinstance(dropout, list):
            raise ValueError(wrong.format("net_dropout", dropout))
        self.mask_blocks = nn.ModuleList(
            MaskBlock(input_dim, input_dim, block_dim, activation, dropout, reduction_ratio, layer_norm)
            for _ in range(num_blocks)
        )
        self.dnn = MLP_Block(
            input_dim=block_dim * num_blocks,
            output_dim=1,
            hidden_units=hidden_units,
            hidden_activations=activation,
            output_activation=output_activation,
            dropout_rates=dropout,
        )

    def forward(self, embeddings: Tensor, normed: Tensor) -> Tensor:
        return self.dnn(torch.cat([block(embeddings, normed) for block in self.mask_blocks], dim=-1))


class MaskBlock(nn.Module):
    """`act(LayerNorm(W (mask(embeddings) * hidden)))`, `[B, F * D], [B, hidden_dim] -> [B, output_dim]`.

    The mask is an MLP of one hidden layer, `reduction_ratio` times as wide as the mask.
    """

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        output_dim: int,
        activation: str,
        dropout: float,
        reduction_ratio: float,
        layer_norm: bool,
    ):
        super().__init__()
        mask_dim = int(hidden_dim * reduction_ratio)
        if mask_dim < 1:
            raise ValueError(f"reduction_ratio leaves a mask of {hidden_dim} no hidden unit (got {reduction_ratio})")
        self.mask_layer = nn.Sequential(nn.Linear(input_dim, mask_dim), nn.ReLU(), nn.Linear(mask_dim, hidden_dim))
        layers: list[nn.Module] = [nn.Linear(hidden_dim, output_dim, bias=False)]
        if layer_norm:
            layers.append(nn.LayerNorm(output_dim))
        layers.append(get_activation(activation, output_dim))
        if dropout > 0:
            layers.append(nn.Dropout(dropout))
        self.hidden_layer = nn.Sequential(*layers)

    def forward(self, embeddings: Tensor, hidden: Tensor) -> Tensor:
        return self.hidden_layer(self.mask_layer(embeddings) * hidden)
