"""A GPU where there is none: a device on which a model runs without data.

Shapes, types and devices of all tensors are worked out, values are not. As on a GPU, tensors of two devices in one
operation raise an error; and what would make a program wait for a GPU is noted.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "fakegpu"
COPIES = ("aten::_to_copy", "aten::copy_")


def register() -> None:
    """Make torch know the device, for the rest of the process."""
    _setup_privateuseone_for_python_backend(NAME)


class FakeGPU(FakeTensorMode):
    """In the block, tensors have no data, and what would wait for the device is noted.

    Attributes:
        waits: `operation in file:line` -> how often.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.waits: Counter[str] = Counter()

    @contextlib.contextmanager
    def running(self) -> Iterator["FakeGPU"]:
        # torch has no shapes for its fused GRU.
        with mock.patch("torch.nn.modules.rnn._VF.gru", _gru), self:
            yield self

    def batch(self, batch: Any) -> Any:
        """A loader's batch, on the CPU."""
        return tree_map(lambda leaf: self.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf, batch)

    def move(self, model: BaseModel) -> BaseModel:
        """Put the model on the device, in place, and its optimizer."""
        device, moved = torch.device(NAME), {}
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    if parameter not in moved:
                        moved[parameter] = nn.Parameter(_empty_like(parameter), parameter.requires_grad)
                    module._parameters[name] = moved[parameter]
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = _empty_like(buffer)
            if isinstance(module, nn.RNNBase):  # has its parameters in a list, too
                module._init_flat_weights()
        model.device = device
        for group in model.optimizer.param_groups:
            group["params"] = [moved[parameter] for parameter in group["params"]]
            group["foreach"] = True  # torch's choice for a GPU
        return model

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if _waits(func, args, kwargs or {}):
            self.waits[f"{func} in {_place()}"] += 1
        return super().dispatch(func, types, args, kwargs)


def _empty_like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=NAME)


def _waits(func: Any, args: Any, kwargs: Any) -> bool:
    name = func.name()
    if name in COPIES:
        source = args[0] if name == "aten::_to_copy" else args[1]
        target = kwargs.get("device") or source.device if name == "aten::_to_copy" else args[0].device
        return torch.device(target).type != source.device.type and not _asynchronous(name, args, kwargs)
    if torch.Tag.data_dependent_output not in func.tags and torch.Tag.dynamic_output_shape not in func.tags:
        return False
    tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
    if not any(tensor.device.type == NAME for tensor in tensors):
        return False
    # Indices that are numbers are no masks, of which the size of the result would depend.
    return "aten::index" not in name or any(tensor.dtype in (torch.bool, torch.uint8) for tensor in tensors[1:])


def _asynchronous(name: str, args: Any, kwargs: Any) -> bool:
    return bool(kwargs.get("non_blocking") or (name == "aten::copy_" and len(args) > 2 and args[2]))


def _place() -> str:
    """Where an operation is asked for: the innermost line that is none of torch's."""
    frame = sys._getframe(1)
    while "/torch/" in frame.f_code.co_filename or frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return f"{'/'.join(frame.f_code.co_filename.split('/')[-2:])}:{frame.f_lineno}"


def _gru(inputs: Tensor, state: Tensor, weights: list[Tensor], *_: Any) -> tuple[Tensor, Tensor]:
    """The shapes of one layer whose input has the batch first; reads all that a GRU reads."""
    gates = nn.functional.linear(inputs, weights[0], weights[2])
    states = gates.chunk(3, dim=-1)[0] + nn.functional.linear(state[0], *weights[1::2]).chunk(3, dim=-1)[0].unsqueeze(1)
    return states, states[:, -1].unsqueeze(0)
