"""Embedding tables whose rows are read and written together: their weights lie in one tensor, and so does each state.

A step reads and writes a few thousand rows of each of some dozens of tables: one call for all of them takes a third of
the time of one for each. Each table's parameter and its state stay tensors of their own, parts of the block's.

Shape symbols: `S` rows of all tables of a block, `D` their width, `N` lookups of a batch, `U` rows looked up.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor


class Penalty(NamedTuple):
    """A regularizer of each weight w of a table: l1 |w| + l2 w**2 / 2."""

    l1: float
    l2: float

    def add_to(self, gradient: Tensor, weight: Tensor) -> None:
        """Add the penalty's gradient at `weight`, in place."""
        if self.l1:
            gradient.add_(weight.sign(), alpha=self.l1)
        if self.l2:
            gradient.add_(weight, alpha=self.l2)


@dataclass
class Block:
    """Tables of one width, of one group of the optimizer, with the same regularizer and number of steps.

    Attributes:
        starts: table -> the row of the block that is its first.
        weight: `[S, D]`.
        state: of the optimizer; what is like a table is `[S, D]`, all else is shared by the tables.
        padding: bool `[S]`, the rows that are never changed; None: there are none.
    """

    starts: dict[Tensor, int]
    weight: Tensor
    state: dict[str, Any]
    padding: Tensor | None
    penalty: Penalty

    @classmethod
    def of_tables(
        cls,
        tables: Mapping[Tensor, int | None],
        penalty: Penalty,
        state: Mapping[Tensor, dict[str, Any]],
    ) -> "Block":
        """Move tables with their state into a block; the tables stay the same parameters.

        A single table stays where it is.

        Args:
            tables: table -> its padding id or None.
            state: of the optimizer, by table.
        """
        first = next(iter(tables))
        starts, size = {}, 0
        for table in tables:
            starts[table], size = size, size + len(table)
        block = cls(starts, first.detach(), {}, None, penalty)
        if len(tables) > 1:
            block.weight = block._joined({table: table.detach() for table in tables})
            for table in tables:
                table.data = block._part(block.weight, table)
        paddings = [starts[table] + padding for table, padding in tables.items() if padding is not None]
        if paddings:
            block.padding = torch.zeros(size, dtype=torch.bool, device=first.device)
            block.padding[paddings] = True
        for key, value in state.get(first, {}).items():
            if is_like(value, first):
                value = block._joined({table: state[table][key] for table in tables})
            elif isinstance(value, Tensor):
                value = value.clone()  # another block may have counted its steps with the same tensor
            block.share(key, value, state)
        return block

    def _joined(self, parts: Mapping[Tensor, Tensor]) -> Tensor:
        """What belongs to each table, `[S, D]`."""
        first = next(iter(parts.values()))
        if len(parts) == 1:
            return first
        whole = first.new_empty(sum(map(len, parts)), first.shape[1])
        for table, part in parts.items():
            self._part(whole, table).copy_(part)
        return whole

    def dissolve(self, state: Mapping[Tensor, dict[str, Any]]) -> None:
        """Give each table, and each of its states, memory of its own again."""
        for table in self.starts:
            table.data = table.data.clone()
            for key, value in state.get(table, {}).items():
                state[table][key] = value.clone() if isinstance(value, Tensor) else value

    def _part(self, whole: Tensor, table: Tensor) -> Tensor:
        return whole[self.starts[table] : self.starts[table] + len(table)]

    def share(self, key: str, value: Any, state: Mapping[Tensor, dict[str, Any]]) -> None:
        """Make a state that of the block, and each table's part of it that of the table."""
        self.state[key] = value
        for table in self.starts:
            state[table][key] = self._part(value, table) if is_like(value, self.weight) else value

    def is_whole(self, state: Mapping[Tensor, dict[str, Any]]) -> bool:
        """Whether the tables and their state still lie in the block; a copied or loaded state does not."""
        return all(
            self._has(self.weight, table, table)
            and state.get(table, {}).keys() == self.state.keys()
            and all(
                self._has(value, table, state[table][key])
                if is_like(value, self.weight)
                else state[table][key] is value
                for key, value in self.state.items()
            )
            for table in self.starts
        )

    def _has(self, whole: Tensor, table: Tensor, part: Tensor) -> bool:
        start = whole.data_ptr() + self.starts[table] * whole.stride(0) * whole.element_size()
        return part.data_ptr() == start


def is_like(value: Any, table: Tensor) -> bool:
    """Whether a value of an optimizer's state has a number for each weight."""
    return isinstance(value, Tensor) and value.shape == table.shape


class LookedUp(NamedTuple):
    """Which rows a batch looked up.

    Attributes:
        ids: `[U]`; on the CPU each id once.
        first: `[U]`, for each id the position that has its gradient; None: each id is there once.
        target: `[N]`, for each lookup the position to which its gradient is added.
    """

    ids: Tensor
    first: Tensor | None
    target: Tensor

    @classmethod
    def of_ids(cls, ids: Tensor, size: int) -> "LookedUp":
        """Find the ids `[N]` that are equal, without sorting them; all are below `size`."""
        if not _can_be_asked(ids.device):
            scratch = torch.empty(size, dtype=torch.long, device=ids.device)
            scratch.scatter_reduce_(0, ids, torch.arange(len(ids), device=ids.device), "amin", include_self=False)
            first = scratch.index_select(0, ids)
            return cls(ids, first, first)
        position = torch.empty(size, dtype=torch.int32).numpy()  # of each id that is there
        given = ids.numpy()
        positions = np.arange(len(given), dtype=np.int32)
        position[given] = positions  # in order: the last one of equal ids stays
        once = given[np.flatnonzero(position[given] == positions)]
        position[once] = positions[: len(once)]
        return cls(torch.from_numpy(once), None, torch.from_numpy(position[given].astype(np.int64)))

    def summed(self, values: Tensor) -> Tensor:
        """The sums `[U, D]` of the gradients `[N, D]` of equal ids."""
        sums = values.new_zeros(len(self.ids), values.shape[1])
        if self.first is not None:
            return sums.index_put_((self.target,), values, accumulate=True)  # deterministic on a GPU, too
        if values.shape[1] == 1:
            sums.view(-1).scatter_add_(0, self.target, values.reshape(-1))
            return sums
        return sums.index_add_(0, self.target, values)


def _can_be_asked(device: torch.device) -> bool:
    """Whether it is known at once how many ids differ; to ask a GPU waits for it, so there each id stays repeated."""
    return device.type == "cpu"


@dataclass
class Rows:
    """The rows of a block that were looked up since the last step.

    Attributes:
        weight: those rows `[U, D]`; its `grad` has the sum over all lookups of an id, once.
    """

    block: Block
    looked_up: LookedUp
    weight: Tensor

    @classmethod
    def with_gradient(
        cls, block: Block, looked_up: LookedUp, gradients: Tensor, weight: Tensor | None = None
    ) -> "Rows":
        """Rows with their gradients, and those of the regularizer.

        Args:
            gradients: of the lookups, `[N, D]`.
            weight: the rows, where they were read.
        """
        (ids, first, _), gradient = looked_up, looked_up.summed(gradients)
        weight = read_rows(block.weight, ids) if weight is None else weight
        block.penalty.add_to(gradient, weight)
        if first is not None:
            is_first = first == torch.arange(len(ids), device=ids.device)
            gradient.mul_(is_first.unsqueeze(1))  # or the norm would count a row's regularizer once for each lookup
        if block.padding is not None:
            is_padding = block.padding.index_select(0, ids)
            if first is None:
                gradient.numpy()[is_padding.numpy()] = 0  # a tenth of the other's time
            else:
                gradient.masked_fill_(is_padding.unsqueeze(1), 0)
        weight.grad = gradient
        return cls(block, looked_up, weight)

    def state(self) -> dict[str, Any]:
        """The optimizer's state of the rows; what is no matrix of a table's shape is shared."""
        block, ids = self.block, self.looked_up.ids
        return {
            key: read_rows(value, ids) if is_like(value, block.weight) else value for key, value in block.state.items()
        }

    def write_back(self, of_rows: Mapping[str, Any], state: Mapping[Tensor, dict[str, Any]]) -> None:
        """Write weights and state of the rows into the block; `state` is that of the optimizer, by table."""
        block, ids = self.block, self.looked_up.ids
        _write_rows(block.weight, ids, self.weight)
        for key, value in of_rows.items():
            if not is_like(value, self.weight):
                block.share(key, value, state)
                continue
            if (
                key not in block.state
            ):  # torch's optimizers begin with zeros, but for those that make their state at once
                block.share(key, torch.zeros_like(block.weight), state)
            _write_rows(block.state[key], ids, value)


def read_rows(whole: Tensor, ids: Tensor) -> Tensor:
    """The rows `[U, D]` of a matrix."""
    if whole.shape[1] == 1:  # a tenth of the time on the CPU
        return whole.view(-1).index_select(0, ids).unsqueeze(1)
    return whole.index_select(0, ids)


def _write_rows(whole: Tensor, ids: Tensor, rows: Tensor) -> None:
    """Write rows in place; equal ids have equal rows."""
    if whole.device.type != "cpu":
        whole.index_copy_(0, ids, rows)
        return
    if whole.shape[1] == 1:
        whole.view(-1).scatter_(0, ids, rows.view(-1))
        return
    # torch's index_copy_ takes three times as long, for it goes through a row number by number.
    row = np.dtype((np.void, whole.shape[1] * whole.element_size()))
    np.put(whole.numpy().view(row), ids.numpy(), rows.contiguous().numpy().view(row), mode="clip")
