"""Folds of rows, drawn by a hash of their ids: equal ids share a fold wherever they stand."""

from collections.abc import Iterable

import torch
from torch import Tensor

ODD = -7046029254386353131  # 2^64 by the golden ratio, as a signed number


def mixed_fold(columns: Iterable[Tensor], folds: int) -> Tensor:
    """The fold of each row, int64 `[n]`, by its ids, each `[n]`. Trained heads stand on the very values."""
    mixed = torch.zeros(1, dtype=torch.int64)
    for ids in columns:
        mixed = (mixed + ids.long() + 1) * ODD  # modulo 2^64
        mixed = mixed ^ (mixed >> 32)
    return (mixed >> 32).remainder(folds)  # the high bits depend on all columns
