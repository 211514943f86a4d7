"""Logit layers: the calls of Linears of width 1 whose outputs, summed up, are a model's logits.

They are found by following the autograd graph from the logits back to the calls.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# The autograd operations that may lie between a Linear's output and the logit: with these alone, the logit is still a
# sum of such outputs, each times a constant.
_LINEAR = ("Add", "Sub", "Neg", "Mul", "Div", "Sum", "Mean", "Cat", "Stack")
_SAME_VALUES = ("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Select", "Slice", "Clone", "Alias")
_OF_A_CONSTANT = ("Mul", "Div")


@dataclass(frozen=True)
class LogitLayer:
    """A call of a Linear of width 1 whose output is a summand of a logit.

    Attributes:
        module: its name in the model.
        call: which of the module's calls in a forward pass.
        width: of its input.
        task: index of the task whose logit it feeds.
        scale: the factor of its output in that logit: 1 in a sum, 0.5 in a mean of two.
    """

    module: str
    call: int
    width: int
    task: int
    scale: float


@dataclass(frozen=True)
class LinearCall:
    """A recorded call of a Linear of width 1 on `[B, width]`.

    Attributes:
        module: its name in the model.
        call: which of the module's calls in the forward pass.
        width: of its input.
        node: the autograd node that made its output.
        weight: the module's weight.
    """

    module: str
    call: int
    width: int
    node: Any
    weight: Tensor


def find_logit_layers(logits: Sequence[Tensor | None], calls: Sequence[LinearCall]) -> tuple[LogitLayer, ...]:
    """The calls whose output is a summand of a task's logit, up to a constant factor, task by task.

    Args:
        logits: `[B, 1]` of each task, with its autograd graph; None where the logit of a task is not known.
    """
    layers = []
    for task, logit in enumerate(logits):
        if logit is None or logit.grad_fn is None or logit.numel() != len(logit):
            continue
        reached = set(_reached(logit.grad_fn))
        for call in calls:
            scale = _scale(logit, call) if call.node in reached else None
            if scale:
                layers.append(LogitLayer(call.module, call.call, call.width, task, scale))
    return tuple(layers)


def _reached(start: Any) -> Iterator[Any]:
    """The autograd nodes from which `start` is reached through `_LINEAR` and `_SAME_VALUES` operations alone."""
    visited, waiting = set(), [start]
    while waiting:
        node = waiting.pop()
        if node in visited:
            continue
        visited.add(node)
        yield node
        kind = node.name().partition("Backward")[0]
        children = [child for child, _ in node.next_functions if child is not None]
        passes = kind in _SAME_VALUES or kind in _LINEAR
        if passes and not (kind in _OF_A_CONSTANT and len(children) > 1):
            waiting.extend(children)


def _scale(logit: Tensor, call: LinearCall) -> float | None:
    """The logit's derivative by the call's output; None where it differs from row to row."""
    caught: list[Tensor] = []
    handle = call.node.register_prehook(lambda gradients: caught.append(gradients[0]))
    try:
        torch.autograd.grad(logit.sum(), call.weight, retain_graph=True)
    finally:
        handle.remove()
    if len(caught) != 1:
        return None
    first = caught[0].flatten()[0]
    return first.item() if bool((caught[0] == first).all()) else None


def is_logit_layer(module: nn.Module) -> bool:
    """Whether the module is a Linear of width 1: then its input, not its output, is the representation."""
    return isinstance(module, nn.Linear) and module.out_features == 1
