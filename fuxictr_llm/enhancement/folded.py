"""What remains of a trained method for serving: constant terms of the logit, or columns of stored vectors.

Shape symbols: `B` rows, `D` embedding dim, `T` tasks, `K` fields and `P = K (K - 1) / 2` pairs `i < j`, row by row.
"""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from fuxictr_llm.common.checks import STRICT
from fuxictr_llm.enhancement.anatomy import Anatomy
from fuxictr_llm.enhancement.base import Enhancement
from fuxictr_llm.enhancement.columns import AddedColumn, IdTables, added_name
from fuxictr_llm.enhancement.kernels import pair_matrix, pair_sums
from fuxictr_llm.host.batches import columns_of


class PairWeights(Enhancement):
    """Adds `sum_{i<j} w_ij <e_bi, e_bj>` to the logit, or to each of T logits one with weights of its own.

    Args:
        anatomy: names the K fields and the T tasks.
        weights: w, `[P]` or `[T, P]`; None where they are loaded afterwards.
    """

    weights: Tensor
    matrix: Tensor

    def __init__(self, config: Any, anatomy: Anatomy, weights: Tensor | None = None):
        super().__init__(config, anatomy)
        num_fields = len(anatomy.fields)
        if weights is None:
            weights = torch.zeros(*_each_task(anatomy), num_fields * (num_fields - 1) // 2)
        self.register_buffer("weights", weights)
        self.register_buffer("matrix", pair_matrix(weights, num_fields), persistent=False)

    def logit(self, embeddings: Tensor, logit: Tensor) -> Tensor:
        return pair_sums(self.matrix, embeddings)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        self.matrix.copy_(pair_matrix(self.weights, self.matrix.shape[-1]))


class Shift(Enhancement):
    """Adds one number to the logit, or to each of T logits one of its own.

    Args:
        anatomy: the backbone's.
        shift: a scalar, or `[T]`; None where it is loaded afterwards.
    """

    shift: Tensor
    reads_embeddings = False

    def __init__(self, config: Any, anatomy: Anatomy, shift: Tensor | None = None):
        super().__init__(config, anatomy)
        self.register_buffer("shift", torch.zeros(_each_task(anatomy)) if shift is None else shift)

    def logit(self, embeddings: Any, logit: Tensor) -> Tensor:
        return self.shift


@dataclass(config=STRICT, kw_only=True)
class StoredConfig:
    """Which vectors are stored.

    Attributes:
        stored: column of ids -> the number of its rows and their width.
    """

    stored: dict[str, list[int]]


class StoredVectors(Enhancement):
    """Gives the backbone columns of vectors, from tables by the ids in other columns.

    Args:
        config: the sizes of the tables.
        anatomy: the backbone's.
        tables: column of ids -> table; None where they are loaded afterwards.
    """

    config_cls = StoredConfig
    reads_embeddings = False

    def __init__(self, config: StoredConfig, anatomy: Anatomy, tables: Mapping[str, Tensor] | None = None):
        super().__init__(config, anatomy)
        self.vectors = IdTables(tables or {name: torch.zeros(*size) for name, size in config.stored.items()})

    @classmethod
    def of_tables(cls, tables: Mapping[str, Tensor], anatomy: Anatomy) -> "StoredVectors":
        """With these tables, by the column of their ids."""
        return cls(StoredConfig(stored={name: list(table.shape) for name, table in tables.items()}), anatomy, tables)

    @classmethod
    def columns(cls, config: StoredConfig, feature_map: Any) -> dict[str, AddedColumn]:
        return {added_name(name): AddedColumn(width) for name, (_, width) in config.stored.items()}

    def inputs(self, inputs: Any) -> dict[str, Tensor]:
        return {added_name(name): vectors for name, vectors in self.vectors(columns_of(inputs)).items()}


def _each_task(anatomy: Anatomy) -> tuple[int, ...]:
    """The leading dimension T of what differs by task; none for a single task."""
    return (len(anatomy.tasks),) if len(anatomy.tasks) > 1 else ()


FOLDED = {cls.__name__: cls for cls in (PairWeights, Shift, StoredVectors)}
