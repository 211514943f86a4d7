"""The student: any backbone with loss terms that pull it towards a teacher. Serving needs the backbone alone.

Shape symbols: `B` rows, `R` width of the student's representation, `R_g` of the teacher's, `T` tasks.
"""

import functools
import logging
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.nn.functional as functional
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.runs import Run
from fuxictr_llm.distillation import DistillationConfig
from fuxictr_llm.distillation.teacher import Teacher
from fuxictr_llm.enhancement.anatomy import Anatomy
from fuxictr_llm.enhancement.base import Enhancement, ForwardTrace
from fuxictr_llm.enhancement.model import enhance
from fuxictr_llm.host.batches import Batch


def score_loss(kind: Literal["bce", "kl", "logit_mse"], student: Tensor, teacher: Tensor, tau: float = 1.0) -> Tensor:
    """Distance of the student's scores from the teacher's, the mean over rows, a scalar.

    With `p_v = sigmoid(z_v / tau)` and `p_g = sigmoid(z_g / tau)`, the gradient of `bce` and `kl` by a row's `z_v` is
    `tau (p_v - p_g) / B`: at tau 1 the plain difference, at high tau that of `logit_mse` divided by 8.
    (Hinton et al., "Distilling the Knowledge in a Neural Network", arXiv 1503.02531, section 2.)

    Args:
        kind: `bce`, `kl` or `logit_mse`, which has no temperature.
        student: its logits z_v, `[B, 1]`.
        teacher: its logits z_g, `[B, 1]`.
        tau: temperature.
    """
    teacher = teacher.detach()
    if kind == "logit_mse":
        return functional.mse_loss(student, teacher)
    probability = (teacher / tau).sigmoid()
    loss = functional.binary_cross_entropy_with_logits(student / tau, probability)
    if kind == "kl":  # the cross entropy minus the teacher's own entropy
        loss = loss - functional.binary_cross_entropy_with_logits(teacher / tau, probability)
    return tau**2 * loss


def representation_loss(
    kind: Literal["mse", "hint", "cosine"], student: Tensor, teacher: Tensor, hint: nn.Module | None = None
) -> Tensor:
    """Distance of the student's representation from the teacher's, a scalar.

    Args:
        kind: `mse`: mean over rows and widths; `hint`: the same after `hint` on the student's; `cosine`: mean of
            `1 - cos` over rows.
        student: `[B, R]`.
        teacher: `[B, R_g]`.
        hint: of `hint`: maps `[B, R]` to `[B, R_g]` (Romero et al., "FitNets", arXiv 1412.6550, section 2.2).
    """
    teacher = teacher.detach()
    if kind == "cosine":
        return (1 - functional.cosine_similarity(student, teacher, dim=-1)).mean()
    if kind == "hint" and hint is not None:
        student = hint(student)
    return functional.mse_loss(student, teacher)


def distilled(backbone: type[BaseModel]) -> type[BaseModel]:
    """The backbone's student class; its constructor also takes the keys of `DistillationConfig`."""
    return enhance(backbone, Distilled)


class Distilled(Enhancement):
    """Adds `alpha * score_loss + beta * representation_loss` to the loss; a term with weight 0 is not computed.

    The teacher is no part of the model: neither of its state and parameters nor of its copies and pickles.

    Args:
        config: weights and kinds of the two terms.
        anatomy: the backbone's. Each of its tasks has a score loss. Without a representation in front of the logit,
            the field embeddings side by side are used as one.
    """

    config_cls = DistillationConfig
    reads_embeddings = False

    def __init__(self, config: DistillationConfig, anatomy: Anatomy):
        super().__init__(config, anatomy)
        self.teacher: Teacher | None = None
        self.compares_representations = config.beta > 0 and anatomy.representation_width > 0
        self.hint = None
        if self.compares_representations and config.representation_loss == "hint":
            width = anatomy.representation_width
            self.hint = nn.Linear(width, config.teacher_width or width)
        self._batch: Batch | None = None
        self._epoch = 0
        self._saved_in_warmup = False  # the weights saved last

    def learn_from(self, teacher: Teacher) -> None:
        """Set the teacher.

        Raises:
            UserError: it has other tasks, its representation cannot be compared with the student's, or it is the
                student itself.
        """
        if getattr(teacher.model, "enhancement", None) is self:
            raise UserError(f"{teacher.name} cannot be its own teacher; take a copy: Teacher(copy.deepcopy(model))")
        if teacher.anatomy.tasks != self.anatomy.tasks:
            raise UserError(
                f"the teacher {teacher.name} predicts {', '.join(teacher.anatomy.tasks)}, "
                f"the student {self.anatomy.backbone} {', '.join(self.anatomy.tasks)}; take one of the same labels"
            )
        if self.config.beta > 0:
            problem = self._why_not_comparable(teacher)
            if problem:
                logging.warning("beta %s has no effect: %s", self.config.beta, problem)
            else:
                self._check_widths(teacher)
            self.compares_representations = problem is None
        self.teacher = teacher

    def active_taps(self) -> frozenset[str]:
        is_on = self.config.alpha > 0 or self.compares_representations
        return frozenset({"inputs", "loss"}) if is_on else frozenset()

    @property
    def weight(self) -> float:
        """The factor of both terms in this epoch: 0 while a joint teacher warms up, else 1."""
        warming_up = self.config.schedule == "joint" and self._epoch < self.config.warmup_epochs
        return 0.0 if warming_up else 1.0

    def on_epoch_begin(self, epoch: int) -> None:
        self._epoch = epoch

    def on_save_weights(self) -> None:
        self._saved_in_warmup = self.weight == 0
        if self.teacher is not None:
            self.teacher.on_save_weights()

    def on_train_end(self, run: Run | None = None) -> None:
        """Detach the teacher."""
        if self.teacher is not None:
            if self._saved_in_warmup:
                logging.warning("the best weights are of the warm-up: the student has learnt nothing from its teacher")
            self.teacher.on_train_end()
        self.teacher = None

    def training_state(self) -> dict[str, Any]:
        teacher = {} if self.teacher is None else self.teacher.training_state()
        return {"saved_in_warmup": self._saved_in_warmup, "epoch": self._epoch, "teacher": teacher}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        self._saved_in_warmup, self._epoch = state["saved_in_warmup"], state["epoch"]
        if self.teacher is not None:
            self.teacher.load_training_state(state["teacher"])

    def inputs(self, inputs: Batch) -> None:
        self._batch = inputs

    def loss(self, trace: ForwardTrace, y_true: Tensor) -> Tensor | None:
        """Both terms, a scalar. The teacher predicts here, outside of the forward pass, which may be compiled.

        Raises:
            UserError: there is no teacher.
        """
        batch, self._batch = self._batch, None
        if self.teacher is None:
            raise UserError(
                f"this {self.anatomy.backbone} is a student without a teacher (a copy has none): "
                "call enhancement.learn_from(teacher), or set alpha: 0 and beta: 0"
            )
        assert batch is not None  # `inputs` has set it
        self.teacher.learn(batch)
        if self.weight == 0:
            return None
        shown, config = self.teacher(batch), self.config
        terms = []
        if config.alpha > 0:
            terms.append(config.alpha * self._score_loss(trace.final_logit, shown.logit.to(trace.final_logit)))
        own, teachers = trace.final_representation, shown.representation
        if self.compares_representations and own is not None and teachers is not None:
            term = representation_loss(config.representation_loss, own, teachers.to(own), self.hint)
            terms.append(config.beta * term)
        return functools.reduce(torch.add, terms)

    def _score_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Summed over the T tasks, `[B, T]` each, as FuxiCTR sums their losses."""
        kind, tau = self.config.score_loss, self.config.tau
        pairs = zip(student.split(1, dim=-1), teacher.split(1, dim=-1), strict=True)
        return functools.reduce(torch.add, [score_loss(kind, own, teachers, tau) for own, teachers in pairs])

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"teacher": None, "_batch": None}

    def _widths(self, teacher: Teacher) -> list[tuple[str, int]]:
        """Name of the student and width of its representation, then the teacher's."""
        return [(self.anatomy.backbone, self.anatomy.representation_width), (teacher.name, teacher.width)]

    def _why_not_comparable(self, teacher: Teacher) -> str | None:
        """Why the two representations cannot be compared, whatever their widths; None where they can."""
        anatomies = [(self.anatomy.backbone, self.anatomy), (teacher.name, teacher.anatomy)]
        none = [name for name, width in self._widths(teacher) if not width]
        embeddings = [name for name, anatomy in anatomies if not anatomy.widths]
        if none:
            return f"{none[0]} has no representation"
        if len(embeddings) == 1 and self.hint is None:
            way_out = "representation_loss: hint compares its embeddings"
            return f"{embeddings[0]} has no representation in front of its logit; {way_out}"
        return None

    def _check_widths(self, teacher: Teacher) -> None:
        (student, own), (name, width) = self._widths(teacher)
        accepted = own if self.hint is None else self.hint.out_features
        if accepted == width:
            return
        ways = {"representation_loss": "hint", "teacher_width": width}
        if self.hint is not None:
            ways.pop("representation_loss")
        way_out = " and ".join(f"{key}: {value}" for key, value in ways.items())
        made_for = "" if self.hint is None else f", its hint made for {accepted}"
        raise UserError(
            f"the representation of the student {student} is {own} wide{made_for}, "
            f"that of the teacher {name} {width}; set {way_out}, or beta: 0"
        )
