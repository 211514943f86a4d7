"""Columns of vectors that a method adds to a backbone's: described before it is built, given with every batch.

Shape symbols: `B` rows, `V` ids of a column, `W` width of a column's vectors.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from fuxictr.pytorch.layers import FeatureEmbeddingDict
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn


@dataclass(frozen=True)
class AddedColumn:
    """A column of vectors `[B, W]`.

    Attributes:
        width: W.
        encoder: makes what brings the vectors to the width of a table of embeddings, which it is given; each table of
            the backbone gets one of its own. None: FuxiCTR's linear layer without bias.
    """

    width: int
    encoder: Callable[[int], nn.Module] | None = None

    @property
    def spec(self) -> dict[str, Any]:
        """As FuxiCTR's feature map describes it."""
        return {"type": "embedding", "source": "", "pretrain_dim": self.width}


def added_name(column: str) -> str:
    """The name of the column that has the vectors of the ids in another one."""
    return f"llm_vector_{column}"


def give_encoders(model: BaseModel, added: Mapping[str, AddedColumn]) -> None:
    """Put the columns' own encoders in place of FuxiCTR's; an optimizer knows nothing of them."""
    for module in model.modules():
        if type(module) is not FeatureEmbeddingDict:
            continue
        for name, column in added.items():
            if column.encoder and name in module.embedding_layers:
                width = cast(nn.Linear, module.feature_encoders[name]).out_features
                module.feature_encoders[name] = column.encoder(width).to(model.device)


def encoder_parameters(model: BaseModel) -> list[nn.Parameter]:
    """The weights of the layers that bring a model's added columns to the width of its tables."""
    added = getattr(model, "added_columns", ())
    tables = [module for module in model.modules() if type(module) is FeatureEmbeddingDict]
    encoders = [table.feature_encoders[name] for table in tables for name in added if name in table.feature_encoders]
    return [weight for encoder in encoders for weight in encoder.parameters()]


class IdTables(nn.Module):
    """Tables of frozen vectors `[V, W]` by the ids of columns; ids beyond them have zeros, as row 0 has, of padding.

    Args:
        tables: column of ids -> its table.
    """

    PREFIX = "of_"  # a column may have the name of an attribute

    def __init__(self, tables: Mapping[str, Tensor]):
        super().__init__()
        for column, table in tables.items():
            self.register_buffer(self.PREFIX + column, table)

    @property
    def tables(self) -> dict[str, Tensor]:
        """Column of ids -> its table."""
        return {name.removeprefix(self.PREFIX): table for name, table in self.named_buffers()}

    def forward(self, columns: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Column of ids -> the vectors of its ids, `[B, W]`, on the tables' device."""
        return {name: rows_of(table, columns[name]) for name, table in self.tables.items()}


def rows_of(table: Tensor, ids: Tensor) -> Tensor:
    """The rows of a table `[V, W]` for ids `[B]`; row 0, zeros, for ids beyond it."""
    ids = ids.to(table.device).long()
    return table[torch.where(ids < len(table), ids, 0)]
