"""A bound on what a model's constructor may allocate: the numbers in a stranger's file are not to fill the memory."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Beside its weights a model makes masks, indices and what initializers need.
SPARE_NUMBERS, SPARE_TENSORS = 2**26, 10_000
TIMES = 8


class AllocatingAtMost(TorchDispatchMode):
    """For the block, new tensors together may not be much larger, or many more, than those of a trained state.

    Raises:
        ValueError: they would be; the tensor that is one too many is not allocated.
    """

    def __init__(self, state: Mapping[str, Tensor]):
        super().__init__()
        self.numbers = TIMES * sum(tensor.numel() for tensor in state.values()) + SPARE_NUMBERS
        self.tensors = TIMES * len(state) + SPARE_TENSORS

    def __torch_dispatch__(self, func: Any, types: Any, args: Iterable[Any] = (), kwargs: Any = None) -> Any:
        wanted = _numbers_of(func, args)
        if wanted is not None:
            self.numbers, self.tensors = self.numbers - wanted, self.tensors - 1
            if self.numbers < 0 or self.tensors < 0:
                raise ValueError("its settings ask for far more weights than there are in the file")
        return func(*args, **(kwargs or {}))


def _numbers_of(func: Any, args: Iterable[Any]) -> int | None:
    """How many numbers a call that makes a tensor from sizes asks for: empty([3, 2]), eye(3), arange(4)."""
    args = [arg for arg in args if not isinstance(arg, Tensor)]
    if isinstance(func, torch._ops.OpOverload) and args and "Tensor" in str(func._schema.returns[0].type):
        if func._schema.name in ("aten::eye", "aten::eye.m"):
            return math.prod(args[:2]) if len(args) > 1 else args[0] ** 2
        if isinstance(args[0], list | torch.Size) and all(isinstance(size, int) for size in args[0]):
            return math.prod(args[0])
    return None
