from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import MLP_Block
from torch import Tensor, nn

from .base import Activations, MultiTaskBackbone, Rates


class PLE(MultiTaskBackbone):
    """Layers of experts, some for one task and some shared by all, and an MLP for each task on top.

    Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task Learning (MTL) Model for Personalized
    Recommendations", RecSys 2020, equations 1-6. As in FuxiCTR, the gates are MLPs (`gate_hidden_units: []` gives the
    paper's linear ones), and the shared gate mixes the shared experts alone, where the paper's mixes all experts; that
    of the last layer is never read.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        num_layers: int = 1,
        num_shared_experts: int = 1,
        num_specific_experts: int = 1,
        expert_hidden_units: list[int] = [512, 256, 128],
        gate_hidden_units: list[int] = [128, 64],
        tower_hidden_units: list[int] = [128, 64],
        hidden_activations: Activations = "ReLU",
        net_dropout: Rates = 0,
        batch_norm: bool = False,
        **shared: Any,
    ):
        super().__init__(feature_map, **shared)
        for argument, number in (("num_layers", num_layers), ("num_shared_experts", num_shared_experts)):
            if number < 1:
                raise ValueError(f"{argument} must be a positive integer (got {number})")
        mlp = {"hidden_activations": hidden_activations, "dropout_rates": net_dropout, "batch_norm": batch_norm}
        experts = (num_shared_experts, num_specific_experts)
        widths = [self.embedding_dim * feature_map.num_fields, *[expert_hidden_units[-1]] * (num_layers - 1)]
        self.cgc_layers = nn.ModuleList(
            CustomizedGateControl(*experts, self.num_tasks, width, expert_hidden_units, gate_hidden_units, mlp)
            for width in widths
        )
        self.tower = nn.ModuleList(
            MLP_Block(expert_hidden_units[-1], tower_hidden_units, output_dim=1, **mlp) for _ in range(self.num_tasks)
        )
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        x = [self.embedding_layer(X, flatten_emb=True)] * (self.num_tasks + 1)
        for layer in self.cgc_layers:
            x = layer(x)
        tasks = zip(self.feature_map.labels, self.tower, self.output_activation, x[:-1], strict=True)
        return {f"{label}_pred": activation(tower(mixed)) for label, tower, activation, mixed in tasks}


class CustomizedGateControl(nn.Module):
    """One layer: a gate for each of the T tasks mixes the task's own experts and the shared ones (equations 1-3).

    The last gate belongs to no task and mixes the shared experts for the next layer (equation 5).
    """

    def __init__(
        self,
        num_shared_experts: int,
        num_specific_experts: int,
        num_tasks: int,
        width: int,
        expert_hidden_units: list[int],
        gate_hidden_units: list[int],
        mlp: dict[str, Any],
    ):
        super().__init__()

        def experts(number: int) -> nn.ModuleList:
            return nn.ModuleList(MLP_Block(width, expert_hidden_units, **mlp) for _ in range(number))

        self.shared_experts = experts(num_shared_experts)
        self.specific_experts = nn.ModuleList(experts(num_specific_experts) for _ in range(num_tasks))
        mixed = [num_specific_experts + num_shared_experts] * num_tasks + [num_shared_experts]
        self.gate = nn.ModuleList(MLP_Block(width, gate_hidden_units, output_dim=number, **mlp) for number in mixed)

    def forward(self, x: list[Tensor]) -> list[Tensor]:
        """`[B, width]` for each task and, last, the shared one -> `[B, units]` each, in the same order."""
        own = [
            [expert(part) for expert in experts.children()]
            for part, experts in zip(x[:-1], self.specific_experts, strict=True)
        ]
        shared = [expert(x[-1]) for expert in self.shared_experts]
        mixed = []
        for part, gate, experts in zip(x, self.gate, [*own, []], strict=True):
            outputs = torch.stack([*experts, *shared], dim=1)  # [B, experts, units]
            mixed.append((gate(part).softmax(dim=-1).unsqueeze(-1) * outputs).sum(dim=1))
        return mixed
