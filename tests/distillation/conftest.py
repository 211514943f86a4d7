"""Teachers and students on the small feature map."""

import pytest
import torch

from fuxictr_llm.distillation import Teacher, distilled
from fuxictr_llm.registry import find_backbone
from support import batches, build, train


@pytest.fixture
def teacher_of():
    """A `Teacher` of a backbone that has been trained a little, with a picture of the items where it reads one."""

    def make(name, kind=Teacher, **changes):
        model = build(name, name, seed=5, **changes)
        train(model, batches(name))
        return kind(model, add=with_image if "image" in model.feature_map.features else None)

    return make


@pytest.fixture
def student_of():
    """A student of a backbone, with fresh weights; alpha and beta are 1."""

    def make(name, teacher=None, **changes):
        model = build(distilled(find_backbone(name)), name, **{"alpha": 1.0, "beta": 1.0, **changes})
        if teacher is not None:
            model.enhancement.learn_from(teacher)
        return model

    return make


def with_image(batch):
    batch.setdefault("image", torch.sin(batch["item"].view(-1, 1) * torch.arange(1.0, 7.0)))
    return batch
