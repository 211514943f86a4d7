from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import MLP_Block
from torch import Tensor, nn

from .base import Activations, MultiTaskBackbone, Rates


class MMoE(MultiTaskBackbone):
    """Experts shared by all tasks, a gate for each task that mixes them, and an MLP for each task on top.

    Ma et al., "Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts", KDD 2018,
    equations 6-8. The gates are MLPs as in FuxiCTR; `gate_hidden_units: []` gives the paper's linear ones.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        num_experts: int = 4,
        expert_hidden_units: list[int] = [512, 256, 128],
        gate_hidden_units: list[int] = [128, 64],
        tower_hidden_units: list[int] = [128, 64],
        hidden_activations: Activations = "ReLU",
        net_dropout: Rates = 0,
        batch_norm: bool = False,
        **shared: Any,
    ):
        super().__init__(feature_map, **shared)
        mlp = {"hidden_activations": hidden_activations, "dropout_rates": net_dropout, "batch_norm": batch_norm}
        width = self.embedding_dim * feature_map.num_fields
        self.mmoe_layer = GatedExperts(num_experts, self.num_tasks, width, expert_hidden_units, gate_hidden_units, mlp)
        self.tower = nn.ModuleList(
            MLP_Block(expert_hidden_units[-1], tower_hidden_units, output_dim=1, **mlp) for _ in range(self.num_tasks)
        )
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        mixed = self.mmoe_layer(self.embedding_layer(X, flatten_emb=True))
        tasks = zip(self.feature_map.labels, self.tower, self.output_activation, mixed, strict=True)
        return {f"{label}_pred": activation(tower(x)) for label, tower, activation, x in tasks}


class GatedExperts(nn.Module):
    """The experts and a gate for each of the T tasks (equations 7 and 8)."""

    def __init__(
        self,
        num_experts: int,
        num_tasks: int,
        width: int,
        expert_hidden_units: list[int],
        gate_hidden_units: list[int],
        mlp: dict[str, Any],
    ):
        super().__init__()
        self.experts = nn.ModuleList(MLP_Block(width, expert_hidden_units, **mlp) for _ in range(num_experts))
        self.gate = nn.ModuleList(
            MLP_Block(width, gate_hidden_units, output_dim=num_experts, **mlp) for _ in range(num_tasks)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """`[B, width]` -> for each task `[B, units]`."""
        experts = torch.stack([expert(x) for expert in self.experts], dim=1)  # [B, experts, units]
        return [(gate(x).softmax(dim=-1).unsqueeze(-1) * experts).sum(dim=1) for gate in self.gate]
