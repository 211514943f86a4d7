"""Logit layers: the calls of Linears of width 1 whose outputs, summed up, are a model's logits.

They are found by following the autograd graph from the logits back to the calls.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# What may stand between a Linear's output and the logit so that the logit is still a sum of such outputs, each
# times a constant.
_LINEAR = ("Add", "Sub", "Neg", "Mul", "Div", "Sum", "Mean", "Cat", "Stack")
_SAME_VALUES = ("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Select", "Slice", "Clone", "Alias")
_OF_A_CONSTANT = ("Mul", "Div")


@dataclass(frozen=True)
class LogitLayer:
    """A call of a Linear of width 1.

    Attributes:
        module: its name in the model.
        call: which of the module's calls in a forward pass.
        width: of its input.
        task: index of the task whose logit it feeds.
        scale: how often its output is in that logit: 1 in a sum, 0.5 in a mean of two.
    """

    module: str
    call: int
    width: int
    task: int
    scale: float


@dataclass(frozen=True)
class LinearCall:
    """A call of a Linear of width 1 with `[B, width]`, as recorded: what made its output, and with which weight."""

    module: str
    call: int
    width: int
    node: Any
    weight: nn.Parameter


def find_logit_layers(logits: Sequence[Tensor | None], calls: Sequence[LinearCall]) -> tuple[LogitLayer, ...]:
    """The calls whose output reaches a task's logit through sums and constants alone, task by task.

    Args:
        logits: `[B, 1]` of each task, with the graph that made them; None where a model does not show its logit.
    """
    towers = []
    for task, logit in enumerate(logits):
        if logit is None or logit.grad_fn is None or logit.numel() != len(logit):
            continue
        reached = set(_reached(logit.grad_fn))
        for call in calls:
            scale = _scale(logit, call) if call.node in reached else None
            if scale:
                towers.append(LogitLayer(call.module, call.call, call.width, task, scale))
    return tuple(towers)


def _reached(start: Any) -> Iterator[Any]:
    seen, waiting = set(), [start]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        kind = node.name().partition("Backward")[0]
        children = [child for child, _ in node.next_functions if child is not None]
        passes = kind in _SAME_VALUES or kind in _LINEAR
        if passes and not (kind in _OF_A_CONSTANT and len(children) > 1):
            waiting.extend(children)


def _scale(logit: Tensor, call: LinearCall) -> float | None:
    """The logit's derivative by the call's output where it is the same for all rows."""
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
    """Whether it is a Linear of width 1, whose input, and not its output, can be the representation."""
    return isinstance(module, nn.Linear) and module.out_features == 1
