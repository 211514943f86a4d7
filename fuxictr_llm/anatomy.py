"""Where a FuxiCTR model can be tapped, found by one forward pass on a synthetic batch.

Shape symbols: `B` rows, `F` fields, `D` embedding dim, `R` width of the representation.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding, FeatureEmbeddingDict
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

from fuxictr_llm.errors import UserError

# What may stand between a Linear's output and the logit so that the logit is still a sum of such outputs.
_SUMMING = ("AddBackward", "ViewBackward", "ReshapeAliasBackward", "SqueezeBackward", "UnsqueezeBackward")


@dataclass(frozen=True)
class Anatomy:
    """Which parts of a backbone the taps sit on. Modules go by their names, so that a copied model has its own.

    Attributes:
        backbone: name of the backbone's class.
        fields: the F fields whose embeddings are seen, in feature-map order.
        dims: the width of each of those embeddings.
        padding: the padding id of each field that is a sequence of ids.
        embedding: name of the module that makes the field embeddings; None where there is none.
        stack: name of the module whose output is these embeddings side by side; None where there is none.
        towers: name and call of each Linear whose outputs sum up to the logit; empty where there is none.
        widths: the input width of each tower; R is their sum.
        activation_call: which call of `output_activation` in a forward pass gives `y_pred`.
    """

    backbone: str
    fields: tuple[str, ...]
    dims: tuple[int, ...]
    padding: dict[str, int]
    embedding: str | None
    stack: str | None
    towers: tuple[tuple[str, int], ...]
    widths: tuple[int, ...]
    activation_call: int

    @property
    def embedding_dim(self) -> int | None:
        """D, or None where the fields' embeddings differ in width or there are none."""
        return self.dims[0] if len(set(self.dims)) == 1 else None


def synthetic_batch(feature_map: FeatureMap, rows: int = 4) -> dict[str, Tensor]:
    """A batch of random ids and values in the form of FuxiCTR's loaders, drawn with a generator of its own."""
    generator = torch.Generator().manual_seed(0)
    batch = {}
    for name, spec in feature_map.features.items():
        kind = spec["type"]
        if kind in ("categorical", "meta"):
            batch[name] = torch.randint(0, max(spec.get("vocab_size", 2), 1), (rows,), generator=generator)
        elif kind == "sequence":
            shape = (rows, spec["max_len"])
            batch[name] = torch.randint(0, spec["vocab_size"], shape, generator=generator, dtype=torch.int32)
        elif kind == "embedding":
            batch[name] = torch.rand(rows, spec["pretrain_dim"], generator=generator)
        else:
            batch[name] = torch.rand(rows, generator=generator)
    for label in feature_map.labels:
        batch[label] = torch.randint(0, 2, (rows,), generator=generator).double()
    return batch


def find_anatomy(model: BaseModel) -> Anatomy:
    """Run `model` once on a synthetic batch and say where its taps are; the model is left as it was.

    Raises:
        UserError: the model's output does not come from its `output_activation`.
    """
    recorder = _Recorder(model)
    with _left_as_it_was(model), recorder.listening(), torch.enable_grad():
        y_pred = model(synthetic_batch(model.feature_map)).get("y_pred")
    calls = [index for index, output in enumerate(recorder.activations) if output[1] is y_pred]
    if y_pred is None or not calls:
        raise UserError(
            f"{type(model).__name__} cannot be tapped: its output has no 'y_pred' made by its output_activation"
        )
    call = calls[-1]
    logit = recorder.activations[call][0]
    embedding, dims = recorder.widest_embedding()
    fields = tuple(name for name in model.feature_map.features if name in dims)
    towers = _towers_of(logit, recorder.linears) if logit.shape[-1] == 1 else []
    return Anatomy(
        backbone=getattr(model, "backbone_cls", type(model)).__name__,
        fields=fields,
        dims=tuple(dims[name] for name in fields),
        padding=_padding(model.feature_map, fields),
        embedding=embedding,
        stack=recorder.stack_of(embedding, fields),
        towers=tuple((name, call) for name, call, _ in towers),
        widths=tuple(width for _, _, width in towers),
        activation_call=call,
    )


def _padding(feature_map: FeatureMap, fields: tuple[str, ...]) -> dict[str, int]:
    specs = {name: feature_map.features[name] for name in fields}
    return {name: spec.get("padding_idx") or 0 for name, spec in specs.items() if spec["type"] == "sequence"}


class _Recorder:
    """Notes, during one forward pass, what comes out of the modules that a tap could sit on."""

    def __init__(self, model: BaseModel):
        self.model = model
        self.embeddings: dict[str, dict[str, Tensor]] = {}
        self.stacks: dict[str, tuple[Tensor, int]] = {}  # what the first call gave, and its version
        self.linears: list[tuple[str, int, int, object]] = []  # name, call, width, what made the output
        self.calls: Counter[str] = Counter()
        self.activations: list[tuple[Tensor, Tensor]] = []

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        handles = []
        inside = tuple(
            f"{name}." for name, module in self.model.named_modules() if type(module) is FeatureEmbeddingDict
        )
        for name, module in self.model.named_modules():
            if type(module) is FeatureEmbeddingDict:
                handles.append(module.register_forward_hook(self._embedding_hook(name)))
            elif type(module) is FeatureEmbedding:
                handles.append(module.register_forward_hook(self._stack_hook(name)))
            elif isinstance(module, nn.Linear) and not name.startswith(inside):
                handles.append(module.register_forward_hook(self._linear_hook(name)))
        activation = self.model.output_activation
        handles.append(
            activation.register_forward_hook(lambda _, args, output: self.activations.append((args[0], output)))
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _embedding_hook(self, name: str):
        def hook(_module: nn.Module, _args: tuple, output: dict[str, Tensor]) -> None:
            seen = self.embeddings.setdefault(name, {})
            for field, tensor in output.items():
                seen.setdefault(field, tensor)

        return hook

    def _stack_hook(self, name: str):
        def hook(_module: nn.Module, _args: tuple, output: Tensor) -> None:
            self.stacks.setdefault(name, (output, output._version))

        return hook

    def _linear_hook(self, name: str):
        def hook(module: nn.Linear, args: tuple, output: Tensor) -> None:
            if module.out_features == 1 and module.in_features > 1 and args[0].dim() == 2:
                self.linears.append((name, self.calls[name], module.in_features, output.grad_fn))
            self.calls[name] += 1

        return hook

    def widest_embedding(self) -> tuple[str | None, dict[str, int]]:
        """The embedding module that covers most fields with vectors (width > 1); the first one called on a tie."""
        best, best_dims = None, {}
        for name, tensors in self.embeddings.items():
            dims = {field: tensor.shape[-1] for field, tensor in tensors.items() if tensor.shape[-1] > 1}
            if len(dims) > len(best_dims):
                best, best_dims = name, dims
        return best, best_dims

    def stack_of(self, embedding: str | None, fields: tuple[str, ...]) -> str | None:
        """The module around `embedding` whose output, `[B, F, D]` or `[B, F * D]`, is the fields' embeddings.

        The model must leave that tensor as it is.
        """
        name = (embedding or "").rpartition(".")[0]
        if name not in self.stacks:
            return None
        output, version = self.stacks[name]
        tensors = [self.embeddings[embedding][field] for field in fields]
        if any(tensor.dim() != 2 or tensor.shape != tensors[0].shape for tensor in tensors):
            return None
        expected = torch.stack(tensors, dim=1)
        same = output.numel() == expected.numel() and torch.equal(output.reshape(expected.shape), expected)
        return name if same and output._version == version else None


def _towers_of(logit: Tensor, linears: list[tuple[str, int, int, object]]) -> list[tuple[str, int, int]]:
    """Name, call and width of the Linears whose output reaches the logit through sums alone, as they were called."""
    reached, waiting = set(), [logit.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in reached:
            continue
        reached.add(node)
        if node.name().startswith(_SUMMING):
            waiting.extend(child for child, _ in node.next_functions)
    return [(name, call, width) for name, call, width, grad_fn in linears if grad_fn in reached]


@contextlib.contextmanager
def _left_as_it_was(model: BaseModel) -> Iterator[None]:
    """Evaluation mode for the block; afterwards modes, buffers (BatchNorm) and random numbers are as before.

    Weights that are frozen are not in it: towers are found by what made the logit.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    frozen = [p for p in model.parameters() if p.is_floating_point() and not p.requires_grad]
    model.eval()
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        with preserved_rng(model.device):
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def preserved_rng(device: torch.device):
    """A context after which torch's random numbers, on the CPU and on `device`, go on as if it had not been."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
