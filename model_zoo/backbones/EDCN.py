from typing import Any, Literal

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import CrossInteraction, MLP_Block
from torch import Tensor, nn

from .base import Backbone

BRIDGES = ("hadamard_product", "pointwise_addition", "concatenation", "attention_pooling")


class EDCN(Backbone):
    """A cross and a deep network in parallel, with a bridge between them and gates on their inputs at every layer.

    Chen et al., "Enhancing Explicit and Implicit Feature Interactions via Information Sharing for Parallel Deep CTR
    Models", CIKM 2021: its bridge and regulation modules. As in FuxiCTR, a cross layer does not add its input,
    `batch_norm` is that of the regulation modules alone, and attention pooling uses its first attention for both
    networks; the second one is never read.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        num_cross_layers: int = 3,
        hidden_activations: str = "ReLU",
        bridge_type: Literal[
            "hadamard_product", "pointwise_addition", "concatenation", "attention_pooling"
        ] = "hadamard_product",
        temperature: float = 1,
        net_dropout: float = 0,
        batch_norm: bool = False,
        **shared: Any,
    ):
        super().__init__(feature_map, **shared)
        if num_cross_layers < 1:
            raise ValueError(f"num_cross_layers must be 1 or more (got {num_cross_layers})")
        if bridge_type not in BRIDGES:
            raise ValueError(f"bridge_type must be one of {', '.join(BRIDGES)} (got {bridge_type!r})")
        if temperature <= 0:
            raise ValueError(f"temperature must be positive (got {temperature})")
        num_fields, layers = feature_map.num_fields, range(num_cross_layers)
        width = num_fields * self.embedding_dim
        self.dense_layers = nn.ModuleList(
            MLP_Block(
                input_dim=width,
                hidden_units=[width],
                hidden_activations=hidden_activations,
                dropout_rates=net_dropout,
            )
            for _ in layers
        )
        self.cross_layers = nn.ModuleList(CrossInteraction(width) for _ in layers)
        self.bridge_modules = nn.ModuleList(Bridge(width, bridge_type) for _ in layers)
        self.regulation_modules = nn.ModuleList(
            Regulation(num_fields, self.embedding_dim, temperature, batch_norm) for _ in layers
        )
        self.fc = nn.Linear(width * 3, 1)
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        shared, base = self.embedding_layer(X).flatten(start_dim=1), None
        layers = zip(self.regulation_modules, self.cross_layers, self.dense_layers, self.bridge_modules, strict=True)
        for regulate, cross_layer, dense_layer, bridge in layers:
            cross, deep = regulate(shared)
            base = cross if base is None else base
            cross, deep = cross_layer(base, cross), dense_layer(deep)
            shared = bridge(cross, deep)
        logit = self.fc(torch.cat([cross, deep, shared], dim=-1))
        return {"y_pred": self.output_activation(logit)}


class Bridge(nn.Module):
    """Combines the outputs of the cross and of the deep layer, `[B, width], [B, width] -> [B, width]`."""

    def __init__(self, width: int, bridge_type: str):
        super().__init__()
        self.bridge_type = bridge_type
        if bridge_type == "concatenation":
            self.concat_pooling = nn.Sequential(nn.Linear(width * 2, width), nn.ReLU())
        elif bridge_type == "attention_pooling":
            self.attention1, self.attention2 = _attention(width), _attention(width)

    def forward(self, cross: Tensor, deep: Tensor) -> Tensor:
        if self.bridge_type == "hadamard_product":
            return cross * deep
        if self.bridge_type == "pointwise_addition":
            return cross + deep
        if self.bridge_type == "concatenation":
            return self.concat_pooling(torch.cat([cross, deep], dim=-1))
        return self.attention1(cross) * cross + self.attention1(deep) * deep


def _attention(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width, bias=False), nn.Softmax(dim=-1))


class Regulation(nn.Module):
    """Fieldwise gates of the cross and of the deep network, `[B, F * D] -> [B, F * D], [B, F * D]`."""

    def __init__(self, num_fields: int, embedding_dim: int, temperature: float, batch_norm: bool):
        super().__init__()
        self.embedding_dim = embedding_dim
        self.temperature = temperature
        self.g1 = nn.Parameter(torch.ones(num_fields))
        self.g2 = nn.Parameter(torch.ones(num_fields))
        width = num_fields * embedding_dim
        self.bn1 = nn.BatchNorm1d(width) if batch_norm else None
        self.bn2 = nn.BatchNorm1d(width) if batch_norm else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._regulated(x, self.g1, self.bn1), self._regulated(x, self.g2, self.bn2)

    def _regulated(self, x: Tensor, gates: Tensor, norm: nn.Module | None) -> Tensor:
        gates = (gates / self.temperature).softmax(dim=-1)
        x = gates.repeat_interleave(self.embedding_dim) * x
        return x if norm is None else norm(x)
