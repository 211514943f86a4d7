"""Records one forward pass of a model: which modules make field embeddings, logits and predictions.

Logit layers are the calls of Linears of width 1 whose outputs, summed up, are a model's logits. They are found by
following the autograd graph from the logits back to the calls.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from fuxictr.pytorch.layers import FeatureEmbedding, FeatureEmbeddingDict
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

Hook = Callable[[nn.Module, tuple[Any, ...], Any], None]
# The autograd operations that may lie between a Linear's output and the logit: with these alone, the logit is still a
# sum of such outputs, each times a constant.
_LINEAR = ("Add", "Sub", "Neg", "Mul", "Div", "Sum", "Mean", "Cat", "Stack")
_SAME_VALUES = ("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Select", "Slice", "Clone", "Alias")
_OF_A_CONSTANT = ("Mul", "Div")


class Recorder:
    """Forward hooks that note the calls of a model's embedding modules, Linears and activations.

    Args:
        model: its calls are noted inside of `listening`.
        also: a module that may make field embeddings, besides FuxiCTR's own.
        measured: modules whose output's shape is noted (of a Linear of width 1: its input's).
    """

    def __init__(self, model: BaseModel, also: str | None = None, measured: Sequence[str] = ()):
        self.model, self.also, self.measured = model, also, tuple(measured)
        self.fields = [name for name, spec in model.feature_map.features.items() if spec["type"] != "meta"]
        self.embeddings: dict[str, dict[str, Tensor]] = {}  # module -> field -> vectors of the first call that had it
        self.stacks: dict[str, tuple[Tensor, int]] = {}  # module -> output of the first call, and its version then
        self.linears: list[LinearCall] = []
        self.calls: Counter[str] = Counter()  # of each Linear
        self.activations: list[tuple[str, Tensor, Tensor]] = []  # module, logit, prediction
        self.shapes: dict[str, torch.Size] = {}  # of the modules in `measured`

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """The hooks are on the model for the block alone."""
        with contextlib.ExitStack() as stack:
            for name, module, hook in self._hooks():
                stack.callback(module.register_forward_hook(hook(name)).remove)
            yield

    def _hooks(self) -> Iterator[tuple[str, nn.Module, Callable[[str], Hook]]]:
        modules = dict(self.model.named_modules())
        inside = tuple(f"{name}." for name, module in modules.items() if isinstance(module, FeatureEmbeddingDict))
        for name, module in modules.items():
            if isinstance(module, FeatureEmbeddingDict) or (name and name == self.also):
                yield name, module, self._embedding_hook
            if isinstance(module, FeatureEmbedding):
                yield name, module, self._stack_hook
            if isinstance(module, nn.Linear) and not name.startswith(inside):
                yield name, module, self._linear_hook
            if name in self.measured:
                yield name, module, self._shape_hook
        for name in activations_of(self.model):
            yield name, modules[name], self._activation_hook

    def _embedding_hook(self, name: str) -> Hook:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            by_field = self.embeddings.setdefault(name, {})
            for field, tensor in vectors_by_field(output, self.fields).items():
                by_field.setdefault(field, tensor)

        return hook

    def _stack_hook(self, name: str) -> Hook:
        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Tensor) -> None:
            self.stacks.setdefault(name, (output, output._version))

        return hook

    def _linear_hook(self, name: str) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            assert isinstance(module, nn.Linear)
            if module.out_features == 1 and module.in_features > 1 and args[0].dim() == 2:
                call = LinearCall(name, self.calls[name], module.in_features, output.grad_fn, module.weight)
                self.linears.append(call)
            self.calls[name] += 1

        return hook

    def _activation_hook(self, name: str) -> Hook:
        return lambda _module, args, output: self.activations.append((name, args[0], output))

    def _shape_hook(self, name: str) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            shown = args[0] if is_logit_layer(module) else output
            if isinstance(shown, Tensor):
                self.shapes.setdefault(name, shown.shape)

        return hook

    def activation_of(self, prediction: Tensor) -> tuple[str, Tensor] | None:
        """Name of the activation that made a prediction, and its input, the logit; None where no activation did."""
        return next(((name, logit) for name, logit, made in self.activations[::-1] if made is prediction), None)

    def embedding_module(self, name: str) -> str:
        """The module that gives the vectors field by field: of FuxiCTR's FeatureEmbedding, the one inside of it."""
        inner = f"{name}.embedding_layer"
        return inner if isinstance(self.model.get_submodule(name), FeatureEmbedding) else name

    def dims_of(self, module: str) -> dict[str, int]:
        """Field -> width, for the fields that the module embeds with vectors (width > 1)."""
        tensors = self.embeddings.get(module, {})
        return {field: tensor.shape[-1] for field, tensor in tensors.items() if tensor.shape[-1] > 1}

    def widest_embedding(self) -> tuple[str | None, dict[str, int]]:
        """The embedding module that covers most fields with vectors; the first one called on a tie."""
        best: str | None = None
        best_dims: dict[str, int] = {}
        for name in self.embeddings:
            dims = self.dims_of(name)
            if len(dims) > len(best_dims):
                best, best_dims = name, dims
        return best, best_dims

    def stack_of(self, embedding: str | None, fields: tuple[str, ...]) -> str | None:
        """The module around `embedding` whose output, `[B, F, D]` or `[B, F * D]`, is the fields' embeddings.

        None where there is no such module, or the model changes its output in place.
        """
        name = (embedding or "").rpartition(".")[0]
        if embedding is None or name not in self.stacks:
            return None
        output, version = self.stacks[name]
        tensors = [self.embeddings[embedding][field] for field in fields]
        if any(tensor.dim() != 2 or tensor.shape != tensors[0].shape for tensor in tensors):
            return None
        expected = torch.stack(tensors, dim=1)
        same = output.numel() == expected.numel() and torch.equal(output.reshape(expected.shape), expected)
        return name if same and output._version == version else None


def activations_of(model: BaseModel) -> list[str]:
    """Names of the modules that turn logits into predictions: one, or one for each task."""
    activation = model.output_activation
    return [name for name, module in model.named_modules() if module is activation or _is_among(module, activation)]


def _is_among(module: nn.Module, activation: nn.Module) -> bool:
    return isinstance(activation, nn.ModuleList) and any(module is one for one in activation)


def vectors_by_field(output: Any, fields: Sequence[str]) -> dict[str, Tensor]:
    """Field -> vectors, from an embedding module's output: a dict of them, or `[B, F, D]` with all fields in order."""
    if isinstance(output, Mapping):
        return {name: tensor for name, tensor in output.items() if name in fields and isinstance(tensor, Tensor)}
    if isinstance(output, Tensor) and output.dim() == 3 and output.shape[1] == len(fields):
        return dict(zip(fields, output.unbind(dim=1), strict=True))
    return {}


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
