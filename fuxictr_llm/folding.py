"""What is left of a method after training: a constant that serving adds to the backbone's logit.

Shape symbols: `B` rows, `K` fields, `D` embedding dim, `P = K (K - 1) / 2` pairs `i < j`, row by row.
"""

from typing import Any

import torch
from torch import Tensor

from fuxictr_llm.anatomy import Anatomy
from fuxictr_llm.enhancement import Enhancement


def pair_matrix(weights: Tensor, num_fields: int) -> Tensor:
    """`[P] -> [K, K]`: symmetric, with zeros on its diagonal."""
    left, right = torch.triu_indices(num_fields, num_fields, offset=1, device=weights.device)
    upper = weights.new_zeros(num_fields, num_fields).index_put((left, right), weights)
    return upper + upper.T


def pair_sum(matrix: Tensor, embeddings: Tensor) -> Tensor:
    """`sum_{i<j} g_ij <e_bi, e_bj>`, `[K, K], [B, K, D] -> [B, 1]`."""
    return 0.5 * (embeddings * (matrix @ embeddings)).sum(dim=(1, 2)).unsqueeze(-1)


class PairWeights(Enhancement):
    """Adds `sum_{i<j} w_ij <e_bi, e_bj>` to the logit.

    Args:
        anatomy: names the K fields.
        weights: w, `[P]`; None where it is loaded.
    """

    def __init__(self, config: Any, anatomy: Anatomy, weights: Tensor | None = None):
        super().__init__(config, anatomy)
        num_fields = len(anatomy.fields)
        weights = torch.zeros(num_fields * (num_fields - 1) // 2) if weights is None else weights
        self.register_buffer("weights", weights)
        self.register_buffer("matrix", pair_matrix(weights, num_fields), persistent=False)

    def logit(self, embeddings: Tensor, logit: Tensor) -> Tensor:
        return pair_sum(self.matrix, embeddings)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.matrix.copy_(pair_matrix(self.weights, len(self.matrix)))


class Shift(Enhancement):
    """Adds one number to every logit.

    Args:
        anatomy: the backbone's.
        shift: a scalar; None where it is loaded.
    """

    def __init__(self, config: Any, anatomy: Anatomy, shift: Tensor | None = None):
        super().__init__(config, anatomy)
        self.register_buffer("shift", torch.zeros(()) if shift is None else shift)

    def logit(self, embeddings: Tensor, logit: Tensor) -> Tensor:
        return self.shift


FOLDED = {cls.__name__: cls for cls in (PairWeights, Shift)}
