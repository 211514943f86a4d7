"""Lookups for `embedding_update: rows` on a CPU: the rows that a batch has are read from the tables once.

The embeddings are copies of these rows, and the optimizer updates them. Results are those of a lookup for each column.

Shape symbols: `B` rows of a batch, `F` columns, `D` width, `U` different rows of tables.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fuxictr_llm.host.lookups import Column
from fuxictr_llm.training.table_blocks import Block, LookedUp, read_rows


@dataclass
class Lookup:
    """What a batch looks up in tables of a block.

    Attributes:
        tables: of each column.
        ids: of each column, `[B]`.
        looked_up: for `B * F` lookups, row by row of the batch.
        weight: the different rows `[U, D]`.
        gradients: of each backward pass: that of `embeddings`, and those of its columns; None: it has none.
    """

    block: Block
    tables: Sequence[Tensor]
    ids: Sequence[Tensor]
    looked_up: LookedUp
    weight: Tensor
    gradients: list[tuple[Tensor | None, Sequence[Tensor | None]]] = field(default_factory=list)

    @classmethod
    def of_columns(cls, block: Block, columns: Sequence[Column], before: Sequence["Lookup"]) -> "Lookup | None":
        """The lookup of columns; None where a table lacks an id.

        Args:
            before: lookups of the same batch.
        """
        tables, ids = zip(*columns, strict=True)
        # A linear part looks up what the embeddings do.
        looked_up = next((other.looked_up for other in before if other.is_of(block, tables, ids)), None)
        if looked_up is None:
            places = torch.stack(ids, dim=1)
            low, high = places.aminmax(dim=0)
            if bool((low < 0).any()) or bool((high >= torch.tensor([*map(len, tables)])).any()):
                return None
            places += torch.tensor([block.starts[table] for table in tables])
            looked_up = LookedUp.of_ids(places.view(-1), len(block.weight))
        return cls(block, tables, ids, looked_up, read_rows(block.weight, looked_up.ids))

    def is_of(self, block: Block, tables: Sequence[Tensor], ids: Sequence[Tensor]) -> bool:
        """Whether these ids are the same, and look up rows of the same numbers in another block."""
        return (
            len(ids) == len(self.ids)
            and all(map(operator.is_, ids, self.ids))
            and [*map(len, tables)] == [*map(len, self.tables)]
            and [*map(block.starts.get, tables)] == [*map(self.block.starts.get, self.tables)]
        )

    def embeddings(self) -> tuple[Tensor, ...]:
        """The embeddings `[B, F, D]`, and each column's `[B, D]` in the same memory; gradients are kept here."""
        return _Embeddings.apply(torch.empty(0, requires_grad=True), self)

    def gradient(self) -> Tensor | None:
        """The gradient of the embeddings, `[B, F, D]`; None where some columns, or several passes, have one."""
        if len(self.gradients) != 1:
            return None
        ((whole, columns),) = self.gradients
        if all(column is None for column in columns):
            return whole
        if any(column is None for column in columns):
            return None
        stacked = torch.stack([column for column in columns if column is not None], dim=1)
        return stacked if whole is None else stacked.add_(whole)

    def give_to_tables(self) -> None:
        """Add the gradients to those of the tables, as a lookup for each column does."""
        for whole, columns in self.gradients:
            for index, (table, ids, column) in enumerate(zip(self.tables, self.ids, columns, strict=True)):
                of_whole = None if whole is None else whole[:, index]
                parts = [part for part in (of_whole, column) if part is not None]
                if parts:
                    values = parts[0] if len(parts) == 1 else parts[0] + parts[1]
                    gradient = torch.sparse_coo_tensor(ids.unsqueeze(0), values, table.shape, check_invariants=False)
                    table.grad = gradient if table.grad is None else table.grad + gradient


class _Embeddings(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, _: Tensor, lookup: Lookup) -> tuple[Tensor, ...]:
        ctx.lookup = lookup
        ctx.set_materialize_grads(False)
        rows = read_rows(lookup.weight, lookup.looked_up.target)
        whole = rows.view(-1, len(lookup.ids), rows.shape[1])
        return whole, *whole.unbind(1)

    @staticmethod
    def backward(ctx: Any, whole: Tensor | None, *columns: Tensor | None) -> tuple[None, None]:
        ctx.lookup.gradients.append((whole, columns))
        return None, None
