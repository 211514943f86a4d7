"""The dot products of all pairs of fields."""

import torch
from fuxictr.pytorch.layers import InnerProductInteraction
from torch import Tensor


class DotInteraction(InnerProductInteraction):
    """The dot products of all pairs, `[B, F, D] -> [B, F (F - 1) / 2]`.

    Its parent selects them by a mask, whose size a GPU has to wait for and torch.compile cannot trace.
    """

    places: Tensor  # of the pairs in the flattened [F, F]

    def __init__(self, num_fields: int):
        super().__init__(num_fields, output="inner_product")
        left, right = torch.triu_indices(num_fields, num_fields, offset=1)
        self.register_buffer("places", left * num_fields + right, persistent=False)

    def forward(self, vectors: Tensor) -> Tensor:
        return torch.bmm(vectors, vectors.transpose(1, 2)).flatten(start_dim=1).index_select(1, self.places)
