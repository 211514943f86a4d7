"""A teacher that trains on the student's batches, one step ahead of it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from fuxictr.pytorch.models import BaseModel

from fuxictr_llm.anatomy import preserved_rng
from fuxictr_llm.distillation.teacher import Batch, Teacher


class JointTeacher(Teacher):
    """A teacher under training: FuxiCTR's step with the model's own optimizer, before the student's on each batch.

    Its weights at the student's best epoch are the ones it ends with. Its random numbers (dropout) are its own. Its
    learning rate stays as it is: where validation gets no better, FuxiCTR lowers the student's alone.

    Args:
        model: a model with fresh weights, plain or enhanced.
        add, taps: as for `Teacher`.
        max_gradient_norm: FuxiCTR's, which its `fit` would set.
        seed: of its dropout.
    """

    def __init__(
        self,
        model: BaseModel,
        add: Callable[[Batch], Batch] | None = None,
        taps: Mapping[str, Any] | None = None,
        max_gradient_norm: float = 10.0,
        seed: int = 0,
    ):
        super().__init__(model, add, taps)
        model._max_gradient_norm = max_gradient_norm
        # FuxiCTR's models of long sequences may sum the gradients of several batches up.
        self._batches_a_step = getattr(model, "accumulation_steps", 1)
        self.seed, self.steps = seed, 0
        self._best: dict[str, torch.Tensor] | None = None

    def learn(self, batch: Batch) -> None:
        """One step of training on the batch, in training mode; gradients that are used up are not kept."""
        with preserved_rng(self.model.device), torch.enable_grad():
            torch.manual_seed(self.seed * 1_000_003 + self.steps)
            self.model.train()
            self.model._batch_index = self.steps  # FuxiCTR's fit counts
            self.model.train_step(self.batch_for_model(batch))
        self.model.eval()
        self.steps += 1
        if self.steps % self._batches_a_step == 0:
            self.model.optimizer.zero_grad(set_to_none=True)

    def kept(self) -> None:
        """Keep a copy of the weights, in the CPU's memory."""
        self._best = {name: value.to("cpu", copy=True) for name, value in self.model.state_dict().items()}

    def finish(self) -> None:
        """Go back to the weights that were kept last."""
        if self._best is not None:
            self.model.load_state_dict(self._best)
            self.model.eval()
            self._best = None
