"""Teachers of a student: a trained model, one that trains with the student, or one with shuffled answers."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.processes import gathered, process_count, process_index
from fuxictr_llm.enhancement.anatomy import find_anatomy, preserved_rng
from fuxictr_llm.enhancement.base import Enhancement, ForwardTrace
from fuxictr_llm.enhancement.model import EnhancedModel, own_columns
from fuxictr_llm.enhancement.taps import Taps
from fuxictr_llm.host.batches import Batch, columns_of, moved_to, on_device, only_columns


class Shown(NamedTuple):
    """A teacher's output for a batch, without gradients."""

    logit: Tensor  # [B, T]
    representation: Tensor | None  # [B, R]; None where the model has none


class Teacher:
    """Any FuxiCTR model as a teacher: in evaluation mode, without gradients, on its own device.

    It is no `nn.Module`: a student that has it does not own its parameters.

    Args:
        model: a trained model, plain or enhanced.
        add: adds to a batch the columns that only the teacher reads; it may change the batch that it gets.
        taps: `tap_embedding` and `tap_representation` of the model's config, where it is a plain one.

    Raises:
        UserError: the model cannot be tapped.
    """

    def __init__(
        self,
        model: BaseModel,
        add: Callable[[Batch], Batch] | None = None,
        taps: Mapping[str, Any] | None = None,
    ):
        self.model = model.eval()
        self.add = add
        plain = not isinstance(model, EnhancedModel)
        self.anatomy = find_anatomy(model, **(taps or {})) if plain else model.enhancement.anatomy

    @property
    def name(self) -> str:
        return type(self.model).__name__

    @property
    def width(self) -> int:
        """R, or 0 where the model has no representation."""
        return self.anatomy.representation_width

    def __call__(self, batch: Batch) -> Shown:
        """Logit and representation of the rows of a batch, which may have more columns than the model reads.

        Raises:
            UserError: the batch lacks a column.
        """
        if self.model.training:
            self.model.eval()
        with torch.no_grad():
            trace = self._traced(on_device(self.batch_for_model(batch), self.model))
        return Shown(trace.final_logit, trace.final_representation)

    def batch_for_model(self, batch: Batch) -> Batch:
        """The model's columns and labels, out of the batch and what `add` adds to it."""
        if self.add is not None:
            batch = self.add(only_columns(batch, columns_of(batch)))
        features, columns = self.model.feature_map.features, columns_of(batch)
        needed = features.keys() - {*own_columns(self.model)}
        missing = next((name for name in features if name in needed and name not in columns), None)
        if missing is not None:
            raise UserError(
                f"the batch lacks column {missing!r}, which the teacher {self.name} reads; "
                "Teacher(model, add=...) takes a function that adds it"
            )
        return only_columns(batch, {*features, *self.model.feature_map.labels})

    def _traced(self, batch: Batch) -> ForwardTrace:
        if isinstance(self.model, EnhancedModel):
            return self.model.traced(batch)
        taps = Taps(self.anatomy, Enhancement(None, self.anatomy))
        with taps.attached(self.model):
            trace = taps.run(self.model, self.model.forward, batch, training=False, always=True)[1]
        assert trace is not None
        return trace

    def learn(self, batch: Batch) -> None:
        """Called before the student trains on this batch; a trained teacher does nothing."""

    def training_state(self) -> dict[str, Any]:
        """What its answers depend on and training changes, as `Enhancement.training_state`."""
        return {}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `training_state` returned."""

    def on_save_weights(self) -> None:
        """Called after the student's weights were saved, the best so far."""

    def on_train_end(self) -> None:
        """Called after the student's training, when it has its best weights."""


class ShuffledTeacher(Teacher):
    """A control: a teacher whose answers are shuffled over the rows of each batch, those of all processes together.

    Args:
        model, add, taps: as for `Teacher`.
        seed: of the generator that draws the permutations; torch's own random state is not used.
    """

    def __init__(
        self,
        model: BaseModel,
        add: Callable[[Batch], Batch] | None = None,
        taps: Mapping[str, Any] | None = None,
        seed: int = 0,
    ):
        super().__init__(model, add, taps)
        self._generator = torch.Generator().manual_seed(seed)

    def training_state(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state()}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        self._generator.set_state(state["generator"])

    def __call__(self, batch: Batch) -> Shown:
        shown = super().__call__(batch)
        device, own = shown.logit.device, slice(None)
        if process_count() > 1:
            shown, own = _of_all_processes(shown)
        order = torch.randperm(len(shown.logit), generator=self._generator)[own]

        def shuffled(answers: Tensor) -> Tensor:
            return moved_to(device, answers[moved_to(answers.device, order)])

        return Shown(shuffled(shown.logit), None if shown.representation is None else shuffled(shown.representation))


def _of_all_processes(shown: Shown) -> tuple[Shown, slice]:
    """What the processes show for their shares of a batch, in the order of its rows, and which rows are this one's."""
    parts = gathered(Shown._make(None if answers is None else answers.cpu() for answers in shown))
    logits = [part.logit for part in parts]
    if all(map(logits[0].equal, logits)):  # a batch of very few rows, all of which every process has
        return parts[0], slice(None)
    start = sum(map(len, logits[: process_index()]))
    columns = [None if answers[0] is None else torch.cat(answers) for answers in zip(*parts, strict=True)]
    return Shown._make(columns), slice(start, start + len(shown.logit))


class Step(Protocol):
    """What trains a joint teacher, as `training.step.TrainingStep` does."""

    model: BaseModel

    def __call__(self, batch: Batch, index: int) -> Tensor:
        """Train on a batch, given how many there were before."""

    def training_state(self) -> dict[str, Any]:
        """The model and all else that the next steps depend on."""

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `training_state` returned."""


class JointTeacher(Teacher):
    """A teacher in training: on each batch a step with the model's own optimizer, before the student's.

    It ends with its weights of the student's best epoch. Its random numbers (dropout) are separate from the
    student's. Its learning rate is constant: where validation does not improve, FuxiCTR lowers only the student's.

    Args:
        step: trains a model with fresh weights, plain or enhanced.
        add, taps: as for `Teacher`.
        seed: of its dropout.
    """

    def __init__(
        self,
        step: Step,
        add: Callable[[Batch], Batch] | None = None,
        taps: Mapping[str, Any] | None = None,
        seed: int = 0,
    ):
        super().__init__(step.model, add, taps)
        # FuxiCTR's models of long sequences may sum up the gradients of several batches.
        self._batches_a_step = getattr(step.model, "accumulation_steps", 1)
        self.step, self.seed, self.steps = step, seed, 0
        self._best: dict[str, torch.Tensor] | None = None

    def learn(self, batch: Batch) -> None:
        """One training step on the batch; gradients are freed after they were applied."""
        with preserved_rng(self.model.device), torch.enable_grad():
            # Each process of torchrun draws others.
            torch.manual_seed((self.seed + 7919 * process_index()) * 1_000_003 + self.steps)
            self.model.train()
            self.step(self.batch_for_model(batch), self.steps)
        self.model.eval()
        self.steps += 1
        if self.steps % self._batches_a_step == 0:
            self.model.optimizer.zero_grad(set_to_none=True)

    def training_state(self) -> dict[str, Any]:
        return {"step": self.step.training_state(), "steps": self.steps, "best": self._best or {}}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        self.step.load_training_state(state["step"])
        self.steps, self._best = state["steps"], dict(state["best"]) or None

    def on_save_weights(self) -> None:
        """Copy the weights to the CPU's memory."""
        self._best = {name: value.to("cpu", copy=True) for name, value in self.model.state_dict().items()}

    def on_train_end(self) -> None:
        """Restore the weights that were copied last."""
        if self._best is not None:
            self.model.load_state_dict(self._best)
            self.model.eval()
            self._best = None
