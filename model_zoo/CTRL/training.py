"""The training of stage 1: batches without their labels, AdamW with a warm-up, and checkpoints to go on from."""

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

from fuxictr_llm.data.in_memory import starts_anywhere
from fuxictr_llm.host.batches import Batch, as_loaded, columns_of, moved_to, on_device, rows_of
from fuxictr_llm.training.checkpoints import Checkpoints, random_states, restore_random_states

MAX_GRADIENT_NORM = 10.0  # FuxiCTR's


class TextsOfRows:
    """The text vectors of a batch's rows, and what of their making is trained."""

    def __call__(self, columns: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """`[N, S]`, and a number `[N]` that rows with the same texts share."""
        raise NotImplementedError

    def parameters(self) -> list[nn.Parameter]:
        """What is trained with the backbone."""
        return []

    def training_state(self) -> dict[str, Any]:
        """What a checkpoint needs of it."""
        return {}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""


class AlignmentTraining:
    """A model with an `Alignment` in training on batches whose labels are not read.

    Args:
        model: its backbone moves but for the layers behind the representation, which get no gradient.
        batches: a loader, read once an epoch.
        texts: gives the text vectors of a batch.
        epochs: passes over the batches.
        learning_rate: AdamW's, after the warm-up.
        warmup: share of the steps in which it rises linearly.
    """

    def __init__(
        self, model: BaseModel, batches: Any, texts: TextsOfRows, epochs: int, learning_rate: float, warmup: float = 0.0
    ):
        self.model, self.batches, self.texts, self.epochs = model, batches, texts, epochs
        self.trained = [*model.parameters(), *texts.parameters()]
        self.optimizer = torch.optim.AdamW(self.trained, lr=learning_rate)
        risen = max(1, round(warmup * epochs * len(batches)))
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: min(1.0, (step + 1) / risen))
        self.losses: list[float] = []  # the mean of each epoch
        self._of_epoch: list[Tensor] = []
        self._next_batch = 0

    def run(self, checkpoints: Checkpoints | None = None) -> list[float]:
        """Train to the end, from the last checkpoint on where there is one; the mean loss of each epoch."""
        nowhere = Path("no weights are the best")
        saved = checkpoints.load(nowhere) if checkpoints else None
        if saved is not None:
            self._go_on_from(saved)
        self.model.train()
        while len(self.losses) < self.epochs:
            for index, batch in enumerate(self._batches(), start=self._next_batch):
                self._next_batch = index + 1
                if rows_of(batch) > 1:
                    self._of_epoch.append(self._step(batch))
                if checkpoints and checkpoints.is_due and starts_anywhere(self.batches):
                    checkpoints.save(self._state(), self._steps, nowhere)
            self.losses.append(torch.stack(self._of_epoch).mean().item() if self._of_epoch else 0.0)
            self._of_epoch, self._next_batch = [], 0
            if checkpoints:
                checkpoints.save(self._state(), self._steps, nowhere)
        return self.losses

    @property
    def _steps(self) -> int:
        return len(self.losses) * len(self.batches) + self._next_batch

    def _batches(self) -> Iterable[Batch]:
        """Those of an epoch that are left."""
        if starts_anywhere(self.batches):
            self.batches.start_at(len(self.losses), self._next_batch)
            return self.batches
        return islice(self.batches, self._next_batch, None)

    def _step(self, batch: Batch) -> Tensor:
        model, method = self.model, self.model.enhancement
        self.optimizer.zero_grad()
        batch = on_device(batch, model)
        vectors, numbers = self.texts(columns_of(as_loaded(batch)))
        equal = moved_to(model.device, numbers[:, None] == numbers) if method.config.mask_equal else None
        loss = method.align_loss(model.traced(batch).representation, moved_to(model.device, vectors), equal)
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.schedule.step()
        return loss.detach()

    def _state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "texts": self.texts.training_state(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "losses": self.losses,
            "of_epoch": self._of_epoch,
            "next_batch": self._next_batch,
            "random": random_states(self.model.device),
        }

    def _go_on_from(self, saved: Mapping[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        self.texts.load_training_state(saved["texts"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.losses, self._next_batch = saved["losses"], saved["next_batch"]
        self._of_epoch = [loss.to(self.model.device) for loss in saved["of_epoch"]]
        restore_random_states(saved["random"], self.model.device)
