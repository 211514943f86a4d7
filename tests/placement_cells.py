"""Cells of the matrix on a GPU that is none (fake_gpu.py): steps of training, an evaluation, a served prediction.

Run in a process of its own: torch does not forget a device.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch
from fake_gpu import NAME, FakeGPU
from fake_gpu import register as register
from fuxictr.pytorch.models import BaseModel
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.distillation import JointTeacher, Teacher, distilled
from fuxictr_llm.enhancement.folded import PairWeights
from fuxictr_llm.enhancement.model import enhance
from fuxictr_llm.host.batches import predictions_of
from fuxictr_llm.model_zoo.ELEC.gain import gain_class
from fuxictr_llm.registry import find_backbone
from fuxictr_llm.serving.load import ServedModel, build_backbone
from fuxictr_llm.training.step import TrainingStep
from matrix_cells import case_of, cell, with_vectors

# Regularizers make most of the operations, and are the same for every backbone.
PLAIN = {"embedding_regularizer": None, "net_regularizer": None, "regularizer": None, "optimizer": "SGD"}


def waits_of(backbone: str, methods: Sequence[str], everything: bool) -> dict[str, dict[str, int]]:
    """`method, what is run` -> the operations that wait for the device; raises where a tensor is on the wrong one.

    Args:
        methods: some of BUILDERS.
        everything: an evaluation and a served prediction as well as a step of training.
    """
    found: dict[str, Counter[str]] = {}
    for method in methods:
        try:
            model, batch = BUILDERS[method](backbone)
        except UserError as error:
            assert "shows none" in str(error), error  # a method says what it misses of a backbone
            continue
        found |= {f"{method}, {name}": waits for name, waits in _run(model, batch, everything).items()}
    assert found, f"{backbone} has none of {methods}"
    found |= {"served": _serve(backbone)} if everything else {}
    return {name: dict(waits) for name, waits in found.items() if waits}


def waits_of_a_whole_step() -> dict[str, int]:
    """Those of a step with regularizers, clipping, Adam and gradients that are added up."""
    case = case_of(find_backbone("DeepFM"))
    return dict(_run(case.build(), case.batches(rows=8)[0], False)["training"])


# What waits for a tensor on the device.
ASKING: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda tensor: tensor.sum().item(),
    "truth": lambda tensor: 1 if tensor.any() else 0,
    "list": lambda tensor: tensor.tolist(),
    "copy to the CPU": lambda tensor: tensor.cpu(),
    "copy into a tensor of the CPU": lambda tensor: torch.empty(3).copy_(tensor),
    "copy from the CPU": lambda tensor: tensor + torch.ones(3).to(tensor.device),
    "nonzero": lambda tensor: tensor.nonzero(),
    "unique": lambda tensor: tensor.unique(),
    "masked_select": lambda tensor: tensor.masked_select(tensor > 0),
    "mask": lambda tensor: tensor[tensor > 0],
}
NOT_WAITING = (
    lambda tensor: tensor[torch.arange(2, device=tensor.device)],
    lambda tensor: tensor.masked_fill(tensor > 0, 1.0).clamp(min=2).sum().log(),
    lambda tensor: torch.ones(3).to(tensor.device, non_blocking=True) + torch.zeros(3, device=tensor.device),
)


def waits_for(name: str) -> dict[str, int]:
    """Those of one of ASKING, which may fail for want of data, or of all of NOT_WAITING."""
    with FakeGPU().running() as gpu:
        tensor = torch.ones(3, device=NAME)
        try:
            for ask in [ASKING[name]] if name in ASKING else NOT_WAITING:
                ask(tensor)
        except (DataDependentOutputException, DynamicOutputShapeException):
            assert name in ASKING
    return dict(gpu.waits)


def _run(model: BaseModel, batch: Any, evaluate: bool) -> dict[str, Counter[str]]:
    with FakeGPU().running() as gpu:
        teacher = getattr(getattr(model, "enhancement", None), "teacher", None)
        for each in (model, teacher and teacher.model):
            if each:
                gpu.move(each)
        batch, step, waits = gpu.batch(batch), TrainingStep(model, {"max_gradient_norm": 0.5}), {}
        model.train()
        loss = step(batch, 0)
        assert loss.device.type == NAME and not loss.requires_grad
        waits["training"] = gpu.waits
        if evaluate:
            gpu.waits = waits["evaluation"] = Counter()
            model.eval()
            with torch.no_grad():
                assert predictions_of(model, model.forward(batch)).device.type == NAME
    return waits


def _serve(backbone: str) -> Counter[str]:
    """A prediction of a served model, with a method's folded term where it can have one."""
    case = case_of(find_backbone(backbone))
    if case.is_long:  # cannot be served
        return Counter()
    model = build_backbone(enhance(case.cls, PairWeights), case.feature_map, case.settings)
    with FakeGPU().running() as gpu, mock.patch.object(Tensor, "numpy", lambda tensor: tensor):
        served = ServedModel(gpu.move(model), {})
        batch = gpu.batch({name: case.batches(rows=8)[0][name] for name in served.fields})
        assert served._forward(batch).device.type == "cpu"
    return gpu.waits


def _matrix_cell(method: str) -> Callable[[str], tuple[BaseModel, Any]]:
    def build(backbone: str) -> tuple[BaseModel, Any]:
        found = cell(backbone, method)
        return found.build(**_plain(found.case.settings)), found.case.batches(rows=8)[0]

    return build


def _student(schedule: str) -> Callable[[str], tuple[BaseModel, Any]]:
    def build(backbone: str) -> tuple[BaseModel, Any]:
        case = case_of(find_backbone(backbone))
        changes = _plain(case.settings)
        gain = case.build(gain_class(case.cls, "top"), inject="top", vector_width=3, **changes)
        if schedule == "joint":
            teacher = JointTeacher(TrainingStep(gain, {}), add=with_vectors)
        else:
            teacher = Teacher(gain, add=with_vectors)
        settings = {"alpha": 0.5, "beta": 0.1, "representation_loss": "hint", "teacher_width": teacher.width or None}
        student = case.build(distilled(case.cls), schedule=schedule, warmup_epochs=0, **settings, **changes)
        student.enhancement.learn_from(teacher)
        return student, case.batches(rows=8)[0]

    return build


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in PLAIN.items() if key in settings}


# LLMEmb stands for the plain backbone, too: it runs that one's code and nothing else.
BUILDERS = {
    "LLaCTR": _matrix_cell("LLaCTR"),
    "LLMEmb": _matrix_cell("LLMEmb"),
    "ELEC staged": _student("staged"),
    "ELEC joint": _student("joint"),
}
