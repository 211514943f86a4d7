"""The hybrid-expert adaptor of KAR, arXiv 2306.10933.

Shape symbols: `B` rows, `W` width of knowledge vectors, `K_s` shared experts, `K_d` dedicated ones of a column, `D_k`
width of adapted vectors.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from .config import KARConfig

PREFIX = "of_"  # a column may have the name of an attribute


class HybridExperts(nn.Module):
    """`v_c = sum_k g_ck [S(r_c); E_c(r_c)]_k`, `g_c = softmax(G_c r_c)`: each column's vectors, by its own alone.

    An expert is `relu(W_2 relu(W_1 r + b_1) + b_2)`. Where r is zero, there is no knowledge, and v is zero.

    Args:
        config: numbers and widths.
        columns: of whose ids the vectors are.
        width: W.
    """

    def __init__(self, config: KARConfig, columns: Sequence[str], width: int):
        super().__init__()
        self.shared = _experts(config, config.shared_experts, width)
        self.dedicated = nn.ModuleDict(
            {PREFIX + name: _experts(config, config.dedicated_experts, width) for name in columns}
        )
        count = config.shared_experts + config.dedicated_experts
        self.gates = nn.ModuleDict({PREFIX + name: nn.Linear(width, count) for name in columns})

    def forward(self, vectors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Column -> `[B, W]`, to column -> `[B, D_k]`."""
        return {name: self._of_column(PREFIX + name, knowledge) for name, knowledge in vectors.items()}

    def _of_column(self, key: str, knowledge: Tensor) -> Tensor:
        dedicated = self.dedicated[key]
        assert isinstance(dedicated, nn.ModuleList)
        answers = torch.stack([expert(knowledge) for expert in [*self.shared, *dedicated]], dim=1)
        gates = self.gates[key](knowledge).softmax(dim=-1)
        known = (knowledge != 0).any(dim=-1, keepdim=True)
        return (gates.unsqueeze(-1) * answers).sum(dim=1) * known


def _experts(config: KARConfig, count: int, width: int) -> nn.ModuleList:
    return nn.ModuleList(
        nn.Sequential(
            nn.Linear(width, config.expert_hidden),
            nn.ReLU(),
            nn.Dropout(config.expert_dropout),
            nn.Linear(config.expert_hidden, config.knowledge_dim),
            nn.ReLU(),
        )
        for _ in range(count)
    )
