"""A served model as a graph of torch.export: columns in, a probability a label out, for any number of rows.

Shape symbols: `N` rows, `L` length of a sequence, `T` labels.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.host.batches import predictions_of, some_rows
from fuxictr_llm.serving.load import ServedModel

AFFECTS_RESULTS = False  # see common/code_digest.py

ROWS = "rows"  # the name of the dimension N
# What torch says at length -> the same in our words.
CAUSES = {
    "your code specialized it to be a constant": "its code takes the number of rows for a constant",
    "data-dependent expression": "its code branches on values of a batch",
}
MOST_ROWS = 500  # of a check
LARGEST_DIFFERENCE = 1e-6
EXAMPLE_ROWS = 3  # neither 1, which torch.export takes for a constant, nor a number of heads or tasks


class Probabilities(nn.Module):
    """A served model whose output is label -> probabilities `[N]`."""

    def __init__(self, served: ServedModel):
        super().__init__()
        self.model, self.labels = served.model, served.labels

    def forward(self, columns: dict[str, Tensor]) -> dict[str, Tensor]:
        predictions = predictions_of(self.model, self.model.forward(columns))
        return dict(zip(self.labels, predictions.unbind(dim=1), strict=True))


def traced(served: ServedModel) -> ExportedProgram:
    """The graph; it is called with a dict of the columns, in any order.

    What torch.export cannot follow by running it, as `len(tensor)`, it may still read in the code (`strict`).

    Raises:
        UserError: torch.export cannot trace the model, with its reason.
    """
    example = {name: column[:EXAMPLE_ROWS] for name, column in check_batch(served).items()}
    shapes = ({name: {0: Dim(ROWS, min=1)} for name in example},)
    module = Probabilities(served).eval()
    trace = partial(torch.export.export, module, (example,), dynamic_shapes=shapes)
    with quiet(), torch.no_grad():
        try:
            return _without_paths(trace(strict=False))
        except Exception as error:  # anyone's class can fail in any way
            try:
                return _without_paths(trace(strict=True))
            except Exception:
                name, why = served.config["model"], first_cause(error)
                raise UserError(f"{name} has no graph: torch.export cannot trace it ({why})") from error


def _without_paths(program: ExportedProgram) -> ExportedProgram:
    """The graph without the lines of code that its nodes come from, which have paths of this machine."""
    parts = (module for module in program.graph_module.modules() if isinstance(module, torch.fx.GraphModule))
    for node in (node for part in parts for node in part.graph.nodes):
        node.meta.pop("stack_trace", None)
    return program


def first_cause(error: BaseException) -> str:
    """What went wrong, in a line, where exporters wrap errors in others and explain at length."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((words for sign, words in CAUSES.items() if sign in str(error)), reason_of(error))


def check_batch(served: ServedModel) -> dict[str, Tensor]:
    """Rows on which a graph is compared with its model, of the types that a graph takes.

    Ids are spread over each vocabulary, its first and last among them; sequences have every length from 0 to L, padded
    behind and in front.
    """
    generator = torch.Generator().manual_seed(0)
    specs = served.model.feature_map.features
    return {name: _column(specs[name], generator) for name in served.fields}


def _column(spec: Mapping[str, Any], generator: torch.Generator) -> Tensor:
    kind = spec["type"]
    if kind == "categorical":
        return _spread_ids(MOST_ROWS, spec["vocab_size"], generator)
    if kind == "sequence":
        return _sequences(spec, generator)
    shape = (MOST_ROWS, spec["pretrain_dim"]) if kind == "embedding" else (MOST_ROWS,)
    return torch.randn(shape, generator=generator)


def _spread_ids(count: int, vocab_size: int, generator: torch.Generator) -> Tensor:
    """All ids, or evenly spaced ones where there are more of them than places, in random order."""
    ids = torch.arange(count) % vocab_size
    if vocab_size > count:
        ids = torch.linspace(0, vocab_size - 1, count, dtype=torch.float64).round().long()
    return ids[torch.randperm(count, generator=generator)]


def _sequences(spec: Mapping[str, Any], generator: torch.Generator) -> Tensor:
    """`[N, L]`; the first row is padding alone."""
    length = spec["max_len"]
    ids = _spread_ids(MOST_ROWS * length, spec["vocab_size"], generator).view(MOST_ROWS, length)
    row, place = torch.arange(MOST_ROWS).unsqueeze(1), torch.arange(length)
    items = row % (length + 1)
    in_front = (row // (length + 1)) % 2 == 1
    real = torch.where(in_front, place >= length - items, place < items)
    return torch.where(real, ids, spec.get("padding_idx") or 0)


def largest_difference(served: ServedModel, answer: Callable[[dict[str, Tensor]], dict[str, np.ndarray]]) -> float:
    """How far the answers of a graph, label -> `[N]`, are from the model's: of one row, of two, and of some hundred.

    Of predictions beyond 1, which a regression makes, it is the share.

    Raises:
        UserError: it is more than `LARGEST_DIFFERENCE`.
    """
    batch, largest = check_batch(served), 0.0
    for rows in (slice(0, 1), slice(1, 2), slice(0, 2), slice(0, MOST_ROWS)):
        part: Any = some_rows(batch, rows)
        expected = served.predict(part).reshape(rows.stop - rows.start, -1)
        answers = answer(part)
        found = np.stack([answers[label] for label in served.labels], axis=1)
        if found.shape != expected.shape or not np.array_equal(np.isnan(found), np.isnan(expected)):
            raise UserError(f"the graph of {served.config['model']} answers otherwise than torch: it must not be used")
        difference = np.abs(found - expected) / np.maximum(np.abs(expected), 1)
        largest = max(largest, float(np.nanmax(difference, initial=0)))
    if largest > LARGEST_DIFFERENCE:
        raise UserError(
            f"the graph of {served.config['model']} predicts up to {largest:.1e} more or less than torch (allowed: "
            f"{LARGEST_DIFFERENCE:.0e}): it must not be used"
        )
    return largest


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings, logging and prints of the exporters, which are about their own inside."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
