"""The precision in which a model's forward pass is computed: float32, or half of it where that is exact enough."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fuxictr_llm.common.errors import UserError

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Precision:
    """What is done about a precision in each step of training. Weights, loss, gradients and metrics are in float32.

    Attributes:
        name: `fp32`, `bf16`, `fp16` or `tf32`.
        scaler: of the loss, so that small gradients do not vanish; with fp16 alone.
    """

    name: str = "fp32"
    scaler: torch.amp.GradScaler | None = field(default=None, repr=False)

    @classmethod
    def from_params(cls, params: Mapping[str, Any], device: torch.device) -> "Precision":
        """The precision that a config names.

        Raises:
            UserError: the device does not have it.
        """
        name = params.get("precision") or "fp32"
        if name in ("fp16", "tf32") and device.type == "cpu":
            raise UserError(f"precision {name!r} needs a GPU (--gpu 0); a CPU has fp32 and bf16")
        if name in ("bf16", "tf32") and device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 8:
            raise UserError(f"precision {name!r} needs a GPU of NVIDIA's Ampere generation or later; this one has fp16")
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
        return cls(name, torch.amp.GradScaler(device.type) if name == "fp16" else None)

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self.name not in HALF:
            return contextlib.nullcontext()
        return torch.autocast(device.type, HALF[self.name])

    def in_float32(self, outputs: Any) -> Any:
        """A model's outputs as its loss takes them."""
        if self.name not in HALF:
            return outputs
        if isinstance(outputs, Tensor):
            return outputs.float() if outputs.is_floating_point() else outputs
        if isinstance(outputs, Mapping):
            return {name: self.in_float32(value) for name, value in outputs.items()}
        return outputs

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss from which the backward pass starts."""
        return loss if self.scaler is None else self.scaler.scale(loss)

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the gradients those of the loss itself."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer's step; with fp16 none where a gradient overflowed."""
        if self.scaler is None:
            optimizer.step()
        else:
            self.scaler.step(optimizer)
            self.scaler.update()
