"""Distillation from a teacher to a student, for any two FuxiCTR models; no language model takes part.

    Student = distilled(DeepFM)
    student = Student(feature_map, **params, alpha=1.0, beta=0.0)
    student.enhancement.learn_from(Teacher(any_trained_model))
    student.fit(...)                              # FuxiCTR's own
    plain.load_state_dict(student.backbone_state_dict())

Student, teacher and losses are imported on first use: reading a config needs no torch.
"""

from importlib import import_module
from typing import Annotated, Any, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from fuxictr_llm.common.checks import STRICT

_HOMES = {
    "score_loss": "student",
    "representation_loss": "student",
    "Teacher": "teacher",
    "ShuffledTeacher": "teacher",
    "Shown": "teacher",
    "JointTeacher": "teacher",
    "Distilled": "student",
    "distilled": "student",
}
__all__ = ["DistillationConfig", *_HOMES]


@dataclass(config=STRICT, kw_only=True)
class DistillationConfig:
    """How a student learns from its teacher besides the clicks: `L = BCE(y, p_v) + alpha * score + beta * repr`.

    Attributes:
        alpha: weight of the score loss; 0 leaves it out.
        beta: weight of the representation loss; 0 leaves it out.
        score_loss: `bce` of the student's probability against the teacher's, `kl` from the teacher's to the student's
            (the same gradient; 0 where both are equal), or `logit_mse`.
        tau: temperature of `bce` and `kl`: both logits are divided by it, and the loss is multiplied by its square.
        representation_loss: `mse` or `cosine` between the inputs of the two logit layers, which must be of one width,
            or `hint`: mse after a linear layer that exists in training alone.
        teacher_width: of `hint`: the width of the teacher's representation; null: the student's own.
        schedule: `staged`: the teacher is trained first; `joint`: it trains on the same batches as the student.
        warmup_epochs: of `joint`: after how many epochs the student starts to learn from its teacher.
    """

    alpha: Annotated[float, Field(ge=0)] = 0.5
    beta: Annotated[float, Field(ge=0)] = 0.1
    score_loss: Literal["bce", "kl", "logit_mse"] = "bce"
    tau: Annotated[float, Field(gt=0)] = 1.0
    representation_loss: Literal["mse", "hint", "cosine"] = "mse"
    teacher_width: Annotated[int, Field(ge=1)] | None = None
    schedule: Literal["staged", "joint"] = "staged"
    warmup_epochs: Annotated[int, Field(ge=0)] = 1


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
