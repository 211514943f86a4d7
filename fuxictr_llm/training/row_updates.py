"""Row-wise updates of embedding tables: a step reads and changes only the rows that its batch looked up.

The update itself is torch's own: the rows of a table, with their part of the optimizer's state, are parameters for the
time of a step. Rows that a batch did not look up keep weights and state, as with TensorFlow's LazyAdam and TorchRec's
fused optimizers; the bias correction of Adam counts all steps.

Several processes have to share what a table's `grad` has after the backward pass, before `clip_gradients`: a sparse
tensor with the looked-up ids (repeated as in the batch) and a gradient for each. Gathered from all processes and
divided by their number, they give each of them the same step; DDP over gloo does that for modules that say `sparse`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Adagrad, Adam, AdamW

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.host.lookups import ALONE_FROM, Column, Found, Lookups, look_up_at_once
from fuxictr_llm.training.lookups import Lookup
from fuxictr_llm.training.table_blocks import Block, LookedUp, Penalty, Rows

if TYPE_CHECKING:  # what follows RowUpdates in every class below
    from torch.optim import Optimizer
else:
    Optimizer = object


class RowUpdates(Lookups, Optimizer):
    """Makes an optimizer of torch update tables by rows.

    A table whose weight was also read otherwise than by lookup has a dense gradient; it gets a dense update.

    Attributes:
        tables: table -> its padding id or None, and its regularizer.
    """

    tables: dict[Tensor, tuple[int | None, Penalty]]
    _alone: set[Tensor]  # tables that had a dense gradient
    _blocks: list[Block]
    _rows: list[Rows]
    _lookups: list[Lookup]

    def __getstate__(self) -> dict[str, Any]:
        made_anew: dict[str, Any] = {"_blocks": [], "_rows": [], "_lookups": []}
        return {**super().__getstate__(), "tables": self.tables, "_alone": self._alone, **made_anew}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients, also those that `finish_gradients` took."""
        self._rows.clear()
        self._lookups.clear()
        for table in self.tables:
            table.grad = None
        super().zero_grad(set_to_none)

    @torch.no_grad()
    def finish_gradients(self) -> list[Tensor]:
        """Sum up the gradients of each row, and add those of the regularizers.

        Returns:
            Tensors whose `grad` has the gradients of rows; the tables themselves have none any more.
        """
        dense = {table for table in self.tables if table.grad is not None and not table.grad.is_sparse}
        self._take_lookups(dense)
        if not self._rows:  # or the blocks are those of the lookups
            self._make_blocks(dense)
        for block in self._blocks:
            starts = {table: start for table, start in block.starts.items() if table.grad is not None}
            if starts and not dense.intersection(starts):
                gradients = [table.grad for table in starts if table.grad is not None]
                columns = zip(gradients, starts.values(), strict=True)
                ids = torch.cat([gradient._indices().view(-1) + start for gradient, start in columns])
                values = torch.cat([gradient._values() for gradient in gradients])
                self._rows.append(Rows.with_gradient(block, LookedUp.of_ids(ids, len(block.weight)), values))
                for table in starts:
                    table.grad = None
        for table in dense:
            assert table.grad is not None
            self.tables[table][1].add_to(table.grad, table.detach())
        return [rows.weight for rows in self._rows]

    def _take_lookups(self, dense: set[Tensor]) -> None:
        """Take the gradients of lookups at once: of rows where they are all of a block, or else give them to tables."""
        lookups = [lookup for lookup in self._lookups if lookup.gradients]
        self._lookups.clear()
        in_blocks = Counter(id(lookup.block) for lookup in lookups)
        for lookup in lookups:
            block = lookup.block
            alone = in_blocks[id(block)] == 1 and all(table.grad is None for table in block.starts)
            gradient = lookup.gradient() if alone and dense <= self._alone else None
            if gradient is None:
                lookup.give_to_tables()
            else:
                gradients = gradient.reshape(-1, gradient.shape[-1])
                self._rows.append(Rows.with_gradient(block, lookup.looked_up, gradients, lookup.weight))

    @property
    def at_once(self) -> bool:
        """Gradients are for `finish_gradients`."""
        return super().at_once and torch.is_grad_enabled()

    def look_up(self, columns: Mapping[str, Column]) -> Iterator[Found]:
        """What is found of the columns of each block."""
        if not self._lookups:
            self._make_blocks(set())
        for block in self._blocks:
            names = [name for name, column in columns.items() if column.table in block.starts]
            of_block = [columns[name] for name in names]
            if len(names) > 1 and (lookup := Lookup.of_columns(block, of_block, self._lookups)):
                self._lookups.append(lookup)
                whole, *embeddings = lookup.embeddings()
                yield Found(names, whole, embeddings)

    @torch.no_grad()
    def dissolve_blocks(self) -> None:
        """Give each table memory of its own: a pickle would have the whole block with each of its tables."""
        for block in self._blocks:
            if len(block.starts) > 1:
                block.dissolve(self.state)
        self._blocks.clear()

    def _make_blocks(self, dense: set[Tensor]) -> None:
        """Put the tables into blocks, where they are not, as after a state was loaded."""
        if self._blocks and dense <= self._alone and all(block.is_whole(self.state) for block in self._blocks):
            return
        self._alone |= dense
        alike: dict[Any, dict[Tensor, int | None]] = {}
        for index, group in enumerate(self.param_groups):
            for table in filter(self.tables.__contains__, group["params"]):
                padding, penalty = self.tables[table]
                state = self.state.get(table, {})
                steps = float(state["step"]) if "step" in state else None
                alone = id(table) if table in self._alone or table.nbytes > ALONE_FROM else None
                key = (index, table.shape[1], table.dtype, table.device, penalty, tuple(state), steps, alone)
                alike.setdefault(key, {})[table] = padding
        self._blocks = [
            Block.of_tables(tables, self.tables[next(iter(tables))][1], self.state) for tables in alike.values()
        ]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update dense parameters and rows."""
        if self._lookups or any(table.grad is not None and table.grad.is_sparse for table in self.tables):
            self.finish_gradients()
        group_of = {table: group for group in self.param_groups for table in group["params"] if table in self.tables}
        given = [group["params"] for group in self.param_groups]
        for group in self.param_groups:
            group["params"] = [*group["params"]]
        for rows in self._rows:
            if (first := rows.looked_up.first) is not None:
                assert rows.weight.grad is not None
                rows.weight.grad = rows.weight.grad[first]
            self.state[rows.weight] = rows.state()
            group_of[next(iter(rows.block.starts))]["params"].append(rows.weight)
        try:
            loss = super().step(closure)
        finally:
            for group, parameters in zip(self.param_groups, given, strict=True):
                group["params"] = parameters
            of_rows = [self.state.pop(rows.weight) for rows in self._rows]
        for rows, state in zip(self._rows, of_rows, strict=True):
            rows.write_back(state, self.state)
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
    optimizer._alone, optimizer._blocks, optimizer._rows, optimizer._lookups = set(), [], [], []
    for module in modules:
        module.sparse = True  # for DDP, too
        module.forward = partial(_look_up, module)
    look_up_at_once(model, optimizer)
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
