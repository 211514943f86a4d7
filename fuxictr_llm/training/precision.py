"""The precision in which a model's forward pass is computed: float32, or half of it where that is exact enough."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.enhancement.base import in_float32

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(params: Mapping[str, Any], device: torch.device) -> str:
    """The name of the precision that a config asks for.

    Raises:
        UserError: the device does not have it.
    """
    name = params.get("precision") or "fp32"
    if name in ("fp16", "tf32") and device.type == "cpu":
        raise UserError(f"precision {name!r} needs a GPU (--gpu 0); a CPU has fp32 and bf16")
    if name in ("bf16", "tf32") and device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 8:
        raise UserError(
            f"precision {name!r} needs a GPU of NVIDIA's Ampere generation or later; this one has fp32 and fp16"
        )
    return name


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
        name = check_precision(params, device)
        if device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
        return cls(name, torch.amp.GradScaler(device.type) if name == "fp16" else None)

    def forward(self, model: BaseModel, batch: Any) -> dict[str, Any]:
        """The output of the model's forward pass, in float32.

        The output activation gets its logit in float32 too: in bfloat16, all probabilities from .998 on are 1.
        """
        if self.name not in HALF:
            return model.forward(batch)
        activation = model.output_activation
        activations = activation if isinstance(activation, nn.ModuleList) else [activation]
        with contextlib.ExitStack() as stack:
            for module in activations:
                stack.callback(module.register_forward_pre_hook(_inputs_in_float32).remove)
            stack.enter_context(torch.autocast(model.device.type, HALF[self.name]))
            return _outputs_in_float32(model.forward(batch))

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


def _inputs_in_float32(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_outputs_in_float32(arg) for arg in args)


def _outputs_in_float32(outputs: Any) -> Any:
    """What a loss reads: tensors, and dicts of them; what a method was shown (a trace) is in float32 already."""
    if isinstance(outputs, Tensor):
        return in_float32(outputs)
    if isinstance(outputs, Mapping):
        return {name: _outputs_in_float32(value) for name, value in outputs.items()}
    return outputs
