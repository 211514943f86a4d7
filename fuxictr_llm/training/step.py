"""One step of training: forward pass, loss, backward pass, clipping of gradients and the optimizer's step."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

from fuxictr_llm.common.processes import under_torchrun
from fuxictr_llm.enhancement.model import EnhancedModel
from fuxictr_llm.host.batches import on_device, rows_of
from fuxictr_llm.training.devices import SharedModule, mean_over_processes, refuse
from fuxictr_llm.training.optimizers import clip_gradients
from fuxictr_llm.training.precision import Precision
from fuxictr_llm.training.row_updates import RowUpdates

MAX_GRADIENT_NORM = 10.0  # FuxiCTR's, where a config names none


class ForwardAndLoss(nn.Module):
    """A model's forward pass and loss as one module, so that several processes can share its work.

    Args:
        model: any FuxiCTR model; the forward pass is its own, and so is the loss.
        precision: of the forward pass; the loss is computed in float32.
    """

    def __init__(self, model: BaseModel, precision: Precision):
        super().__init__()
        self.model, self.precision = model, precision

    def forward(self, batch: Any) -> Tensor:
        """The loss of a batch, a scalar."""
        outputs = self.precision.forward(self.model, batch)
        return self.model.compute_loss(outputs, self.model.get_labels(batch))


class TrainingStep:
    """Trains a model on one batch after the other; in float32 the numbers are those of FuxiCTR's `train_step`.

    The gradients of several batches are added up where the model has `accumulation_steps` (FuxiCTR's LongCTR models).
    A model with a `train_step` of its own otherwise is trained by that.

    Args:
        model: any FuxiCTR model, on its device.
        params: `max_gradient_norm` and `precision` are read.
    """

    def __init__(self, model: BaseModel, params: Mapping[str, Any]):
        self.model = model
        model._max_gradient_norm = params.get("max_gradient_norm", MAX_GRADIENT_NORM)
        self.accumulated = getattr(model, "accumulation_steps", 1)
        self.precision = Precision.from_params(params, model.device)
        self.is_own = has_own_step(model)
        if self.is_own:
            refuse(model, "has a training step")
        self.module = SharedModule(ForwardAndLoss(model, self.precision), model)

    def __call__(self, batch: Any, index: int) -> Tensor:
        """Train on a batch.

        Args:
            index: of the batch in its epoch.

        Returns:
            The loss, a scalar without gradients on the model's device: reading it waits for the device. Under torchrun
            it is of the process's share of the batch, and the mean over all processes is the batch's.
        """
        self.model._batch_index = index
        batch = on_device(batch, self.model)
        if self.is_own:
            return self.model.train_step(batch).detach()
        if self.accumulated == 1:
            self.model.optimizer.zero_grad()
        applied = (index + 1) % self.accumulated == 0
        with self.module.collecting(applied), self._lookups():
            loss = self.module(batch, rows_of(batch))
            if self.accumulated > 1:
                loss = loss / self.accumulated
            self.precision.scaled(loss).backward()
        if applied:
            self._apply_gradients()
        return loss.detach()

    def _lookups(self) -> AbstractContextManager[None]:
        """The context in which rows of tables are looked up: at once on a CPU where none but this step has a part."""
        optimizer, on_cpu = self.model.optimizer, self.model.device.type == "cpu"
        alone = not under_torchrun() and self.accumulated == 1 and self.precision.scaler is None
        return optimizer.in_use() if isinstance(optimizer, RowUpdates) and on_cpu and alone else nullcontext()

    def _apply_gradients(self) -> None:
        optimizer = self.model.optimizer
        self.precision.unscale(optimizer)
        clip_gradients(self.model, self.model._max_gradient_norm)
        self.precision.step(optimizer)
        if self.accumulated > 1:
            optimizer.zero_grad()

    def training_state(self) -> dict[str, Any]:
        """All that the next steps depend on but for random numbers; all processes have to ask for it together."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.model.optimizer.state_dict(),
            "gradients": self._unapplied_gradients(),
            "scaler": self.precision.scaler and self.precision.scaler.state_dict(),
        }

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `training_state` returned."""
        self.model.load_state_dict(state["model"])
        self.model.optimizer.load_state_dict(state["optimizer"])
        weights = dict(self.model.named_parameters())
        for name, gradient in state["gradients"].items():
            weights[name].grad = gradient.to(weights[name].device)
        if self.precision.scaler is not None:
            self.precision.scaler.load_state_dict(state["scaler"])

    def _unapplied_gradients(self) -> dict[str, Tensor]:
        """The gradients of a model that adds up those of several batches; of others, every step starts without any.

        Until they are applied, each process has those of its own rows.
        """
        if self.accumulated == 1:
            return {}
        weights = self.model.named_parameters()
        return {name: mean_over_processes(weight.grad) for name, weight in weights if weight.grad is not None}


class StepOfFit:
    """What a model's `train_step` is where FuxiCTR's cannot train it, as with `embedding_update: rows`.

    Args:
        model: FuxiCTR's `fit` sets its `_max_gradient_norm` and `_batch_index`.
    """

    def __init__(self, model: BaseModel):
        self.model = model

    @cached_property
    def _step(self) -> TrainingStep:
        return TrainingStep(self.model, {"max_gradient_norm": self.model._max_gradient_norm})

    def __call__(self, batch: Any) -> Tensor:
        """The loss of a batch, on which the model is trained."""
        return self._step(batch, getattr(self.model, "_batch_index", 0))


def has_own_step(model: BaseModel) -> bool:
    """Whether the model's class has a training step of its own that does more than to add up gradients."""
    cls = model.backbone_cls if isinstance(model, EnhancedModel) else type(model)
    return cls.train_step is not BaseModel.train_step and not hasattr(model, "accumulation_steps")
