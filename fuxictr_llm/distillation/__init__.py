"""Distillation from a teacher to a student, for any two FuxiCTR models; no language model takes part.

    Student = distilled(DeepFM)
    student = Student(feature_map, **params, alpha=1.0, beta=0.0)
    student.enhancement.learn_from(Teacher(any_trained_model))
    student.fit(...)                              # FuxiCTR's own
    plain.load_state_dict(student.backbone_state_dict())

The names below are imported on first use: reading a config needs no torch.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "DistillationConfig": "config",
    "score_loss": "student",
    "representation_loss": "student",
    "Teacher": "teacher",
    "ShuffledTeacher": "teacher",
    "Shown": "teacher",
    "JointTeacher": "teacher",
    "Distilled": "student",
    "distilled": "student",
}
__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
