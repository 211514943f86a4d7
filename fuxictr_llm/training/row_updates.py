"""Row-wise updates of embedding tables: a step reads and changes only the rows that its batch looked up.

The update itself is torch's own: the rows of a table, with their part of the optimizer's state, are parameters for the
time of a step. Rows that a batch did not look up keep weights and state, as with TensorFlow's LazyAdam and TorchRec's
fused optimizers; the bias correction of Adam counts all steps.

Several processes have to share what a table's `grad` has after the backward pass, before `clip_gradients`: a sparse
tensor with the looked-up ids (repeated as in the batch) and a gradient for each. Gathered from all processes and
divided by their number, they give each of them the same step; DDP over gloo does that for modules that say `sparse`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adagrad, Adam, AdamW

from fuxictr_llm.common.errors import UserError

if TYPE_CHECKING:  # what follows RowUpdates in every class below
    from torch.optim import Optimizer
else:
    Optimizer = object


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
class Rows:
    """The rows of a table that were looked up since the last step.

    Attributes:
        table: `[V, D]`.
        ids: `[U]`; on the CPU each id once.
        weight: those rows `[U, D]`; its `grad` has the sum over all lookups of an id, once.
        first: `[U]`, for each id the position that has its gradient; None: each id is there once.
    """

    table: Tensor
    ids: Tensor
    weight: Tensor
    first: Tensor | None

    @classmethod
    def of_gradient(cls, table: Tensor, looked_up: "LookedUp", padding: int | None, penalty: Penalty) -> "Rows":
        """The rows of a table's sparse gradient, with the gradient of the table's regularizer at those rows."""
        assert table.grad is not None
        ids, gradient = looked_up.ids, looked_up.summed(table.grad._values())
        weight = _rows_of(table.detach(), ids)
        penalty.add_to(gradient, weight)
        if looked_up.first is not None:
            is_first = looked_up.first == torch.arange(len(ids), device=ids.device)
            gradient.mul_(is_first.unsqueeze(1))  # or the norm would count a row's regularizer once for each lookup
        if padding is not None and looked_up.first is None:
            gradient.numpy()[ids.numpy() == padding] = 0  # a tenth of the other's time
        elif padding is not None:
            gradient.masked_fill_((ids == padding).unsqueeze(1), 0)
        weight.grad = gradient
        return cls(table, ids, weight, looked_up.first)

    def state_of(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The optimizer's state of the rows, out of that of the table; what is no matrix of its shape is shared."""
        return {
            key: _rows_of(value, self.ids) if _is_like(value, self.table) else value for key, value in state.items()
        }

    def write_back(self, of_rows: Mapping[str, Any], state: dict[str, Any]) -> None:
        """Write weights and state of the rows into the table and its state."""
        _write_rows(self.table.detach(), self.ids, self.weight)
        for key, value in of_rows.items():
            if _is_like(value, self.weight):
                if key not in state:  # torch's optimizers begin with zeros, but for those that make their state at once
                    state[key] = torch.zeros_like(self.table)
                _write_rows(state[key], self.ids, value)
            else:
                state[key] = value


def _rows_of(table: Tensor, ids: Tensor) -> Tensor:
    if table.device.type != "cpu":
        return table.index_select(0, ids)
    return torch.from_numpy(table.numpy().take(ids.numpy(), axis=0, mode="clip"))  # half the time of torch's


def _write_rows(table: Tensor, ids: Tensor, rows: Tensor) -> None:
    """Write rows in place; equal ids have equal rows."""
    if table.device.type != "cpu":
        table.index_copy_(0, ids, rows)
        return
    if table.shape[1] == 1:
        table.scatter_(0, ids.unsqueeze(1), rows)
        return
    # torch's index_copy_ takes three times as long, for it goes through a row number by number.
    row = np.dtype((np.void, table.shape[1] * table.element_size()))
    np.put(table.numpy().view(row), ids.numpy(), rows.contiguous().numpy().view(row), mode="clip")


def _is_like(value: Any, table: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == table.shape


def _can_be_asked(device: torch.device) -> bool:
    """Whether it is known at once how many ids differ; to ask a GPU waits for it, so there each id stays repeated."""
    return device.type == "cpu"


def _scratch(size: int, device: torch.device) -> Tensor:
    return torch.empty(size, dtype=torch.int32 if _can_be_asked(device) else torch.long, device=device)


class LookedUp(NamedTuple):
    """The ids of a sparse gradient, as `Rows` has them.

    Attributes:
        ids, first: those of `Rows`.
        target: for each gradient the position to which it is added.
    """

    ids: Tensor
    first: Tensor | None
    target: Tensor

    @classmethod
    def of_ids(cls, ids: Tensor, scratch: Tensor) -> "LookedUp":
        """Find the ids that are equal, without sorting them.

        Args:
            scratch: int64 (on the CPU int32), as long as the table or longer; what it has does not matter.
        """
        if not _can_be_asked(ids.device):
            scratch.scatter_reduce_(0, ids, torch.arange(len(ids), device=ids.device), "amin", include_self=False)
            first = scratch.index_select(0, ids)
            return cls(ids, first, first)
        at, given = scratch.numpy(), ids.numpy()  # numpy takes a third of torch's time for arrays as short as these
        positions = np.arange(len(given), dtype=np.int32)
        at[given] = positions  # in order: the last one of equal ids stays
        once = given[np.flatnonzero(at[given] == positions)]
        at[once] = positions[: len(once)]
        return cls(torch.from_numpy(once), None, torch.from_numpy(at[given].astype(np.int64)))

    def summed(self, values: Tensor) -> Tensor:
        """The sums `[U, D]` of the gradients of equal ids."""
        sums = values.new_zeros(len(self.ids), values.shape[1])
        if self.first is not None:
            return sums.index_put_((self.target,), values, accumulate=True)  # deterministic on a GPU, too
        if values.shape[1] == 1:
            sums.view(-1).scatter_add_(0, self.target, values.reshape(-1))
            return sums
        return sums.index_add_(0, self.target, values)


class RowUpdates(Optimizer):
    """Makes an optimizer of torch update tables by rows.

    A table whose weight was also read otherwise than by lookup has a dense gradient; it gets a dense update.

    Attributes:
        tables: table -> its padding id or None, and its regularizer.
    """

    tables: dict[Tensor, tuple[int | None, Penalty]]
    _rows: dict[Tensor, Rows]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "tables": self.tables, "_rows": {}}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, also those that `finish_gradients` took."""
        self._rows.clear()
        for table in self.tables:
            table.grad = None
        super().zero_grad(set_to_none)

    def finish_gradients(self) -> list[Tensor]:
        """Sum up the gradients of each row, and add those of the regularizers.

        Returns:
            Tensors whose `grad` has the gradients of rows; the tables themselves have none any more.
        """
        looked_up = [table for table in self.tables if table.grad is not None and table.grad.is_sparse]
        sizes: dict[torch.device, int] = {}
        for table in looked_up:
            sizes[table.device] = max(len(table), sizes.get(table.device, 0))
        scratch = {device: _scratch(size, device) for device, size in sizes.items()}
        looked_up_in: dict[Any, LookedUp] = {}
        done: list[Tensor] = []
        for table, (padding, penalty) in self.tables.items():
            if table.grad is None:
                continue
            if table.grad.is_sparse:
                ids = table.grad._indices().view(-1)
                column = (ids.device, ids.data_ptr(), len(ids))  # that of a linear part is the embedding's
                if column not in looked_up_in:
                    looked_up_in[column] = LookedUp.of_ids(ids, scratch[table.device])
                self._rows[table] = Rows.of_gradient(table, looked_up_in[column], padding, penalty)
                done.append(table.grad)  # its ids stay in their place as long as they are looked for
                table.grad = None
            elif table not in self._rows:
                penalty.add_to(table.grad, table.detach())
        return [rows.weight for rows in self._rows.values()]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update dense parameters and rows."""
        if any(table.grad is not None and table.grad.is_sparse for table in self.tables):
            self.finish_gradients()
        given = [group["params"] for group in self.param_groups]
        for rows in self._rows.values():
            if rows.first is not None:
                assert rows.weight.grad is not None
                rows.weight.grad = rows.weight.grad[rows.first]
            self.state[rows.weight] = rows.state_of(self.state.get(rows.table, {}))
        try:
            for group in self.param_groups:
                group["params"] = [
                    self._rows[parameter].weight if parameter in self._rows else parameter
                    for parameter in group["params"]
                ]
            loss = super().step(closure)
        finally:
            for group, parameters in zip(self.param_groups, given, strict=True):
                group["params"] = parameters
            of_rows = {table: self.state.pop(rows.weight) for table, rows in self._rows.items()}
        for table, rows in self._rows.items():
            rows.write_back(of_rows[table], self.state[table])
        self._rows.clear()
        return loss


class RowAdam(RowUpdates, Adam):
    """Lazy Adam."""


class RowAdamW(RowUpdates, AdamW):
    """Lazy Adam with decoupled weight decay, of the rows of a batch."""


class RowAdagrad(RowUpdates, Adagrad):
    """Adagrad: equal to its dense form but for weight decay and regularizers."""


class RowSGD(RowUpdates, SGD):
    """SGD: equal to its dense form but for weight decay and regularizers."""


ROW_FORMS: dict[type[torch.optim.Optimizer], type[RowUpdates]] = {
    Adam: RowAdam,
    AdamW: RowAdamW,
    Adagrad: RowAdagrad,
    SGD: RowSGD,
}


def prepare_tables(model: BaseModel, optimizer: RowUpdates) -> None:
    """Give the optimizer the model's tables, and let the model look them up and regularize without them.

    Tables are the trained `nn.Embedding`s; `nn.EmbeddingBag`s and what has other rules stay dense.
    """
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    modules = [module for module in model.modules() if _is_table(module) and module.weight in trained]
    penalties = _penalties_of(model, modules)
    optimizer.tables = {module.weight: (module.padding_idx, penalties[module.weight]) for module in modules}
    optimizer._rows = {}
    for module in modules:
        module.sparse = True  # for DDP, too
        module.forward = partial(_look_up, module)
    model.regularization_loss = partial(_regularization_of_others, model)


def _is_table(module: nn.Module) -> bool:
    is_plain = type(module) is nn.Embedding and "forward" not in vars(module)
    return is_plain and module.max_norm is None and not module.scale_grad_by_freq and module.weight.requires_grad


def _look_up(module: nn.Embedding, ids: Tensor) -> Tensor:
    """The module's forward, without its `padding_idx`: to leave that out of the gradient waits for the device."""
    return functional.embedding(ids, module.weight, sparse=True)


def _regularization_of_others(model: BaseModel) -> Tensor | float:
    """The regularization of all parameters but the tables, which the optimizer regularizes by rows."""
    tables = [table for table in model.optimizer.tables if table.requires_grad]
    for table in tables:
        table.requires_grad_(False)  # FuxiCTR's regularizers leave such parameters out
    try:
        return type(model).regularization_loss(model)
    finally:
        for table in tables:
            table.requires_grad_(True)


# At these weights the gradient of a table's regularizer is read; the third one is a check.
PROBE = (1.0, 2.0, -3.0)


def _penalties_of(model: BaseModel, modules: Iterable[nn.Embedding]) -> dict[Tensor, Penalty]:
    """How the model's own `regularization_loss` penalizes each table, whatever its rules are.

    Raises:
        UserError: it is no sum of l1 and l2.
    """
    tables = {module: module.weight for module in modules}
    probes = {
        table: nn.Parameter(torch.tensor([PROBE], dtype=torch.float64, device=table.device))
        for table in tables.values()
    }
    try:
        for module, table in tables.items():
            module.weight = probes[table]
        loss = model.regularization_loss()
        if not isinstance(loss, Tensor) or not loss.requires_grad or not probes:
            return dict.fromkeys(probes, Penalty(0.0, 0.0))
        gradients = torch.autograd.grad(loss, [*probes.values()], allow_unused=True)
    finally:
        for module, table in tables.items():
            module.weight = table
    name = type(model).__name__
    return {table: _penalty(gradient, name) for table, gradient in zip(probes, gradients, strict=True)}


def _penalty(gradient: Tensor | None, name: str) -> Penalty:
    if gradient is None:
        return Penalty(0.0, 0.0)
    at_one, at_two, check = gradient[0].tolist()
    l1, l2 = 2 * at_one - at_two, at_two - at_one
    tolerance = 1e-6 * (abs(at_one) + abs(at_two))
    if abs(check + l1 + 3 * l2) > tolerance:
        raise UserError(
            f"the regularization_loss of {name} is no sum of l1 and l2 over the weights of its tables, so that rows "
            "cannot be regularized alone; set embedding_update: dense"
        )
    return Penalty(*(value if abs(value) > tolerance else 0.0 for value in (l1, l2)))
