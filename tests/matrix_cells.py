"""The cells of the test matrix: every backbone of the zoo with every method, on tiny data with all types of features."""

import functools
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from fuxictr.pytorch.models import BaseModel

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.diagnosis.tiny import TinyCase, active_regularization, tiny_case, train
from fuxictr_llm.distillation import Teacher, distilled
from fuxictr_llm.enhancement.anatomy import find_anatomy
from fuxictr_llm.enhancement.model import enhance
from fuxictr_llm.host.batches import columns_of, only_columns, predictions_of
from fuxictr_llm.model_zoo.ELEC.gain import gain_class
from fuxictr_llm.model_zoo.ELEC.head import VECTOR
from fuxictr_llm.model_zoo.LLaCTR.vector_file import write_field_vectors
from fuxictr_llm.model_zoo.LLMEmb.model import with_random_vectors
from fuxictr_llm.registry import find_backbone, find_method
from support import AllTaps, Idle

# Each of them switched off is an idle method.
METHODS = ("AllTaps", "LLaCTR", "LLMEmb", "ELEC")
# One backbone for each path that a method's code can take: two logit layers, no representation, no field embeddings,
# a bilinear logit, a sequence model, several tasks, a complex-valued interaction, a stack of its own.
PATHS = ("DeepFM", "FM", "LR", "FinalMLP", "DIN", "MMoE", "EulerNet", "DCNv2")
# Files of vectors; a cell's models are built in many tests, each of which has a folder of its own.
_folder = tempfile.TemporaryDirectory()


@dataclass(frozen=True)
class Cell:
    """A backbone with a method, its terms on or off.

    Attributes:
        case: the backbone on the data that it takes.
        cls: the class of the backbone with the method.
        settings: constructor arguments of the method.
    """

    case: TinyCase
    cls: type[BaseModel]
    settings: dict

    def build(self, seed: int = 1, **changes) -> BaseModel:
        model = self.case.build(self.cls, seed, **self.settings, **changes)
        if hasattr(model.enhancement, "learn_from") and model.enhancement.active_taps():
            model.enhancement.learn_from(gain_teacher(self.case.cls))
        return model

    def plain(self, seed: int = 1, **changes) -> BaseModel:
        # Of the same flat config: FuxiCTR's SIM has an alpha and a beta of its own.
        return self.case.build(seed=seed, **self.settings, **changes)

    def batches(self) -> list:
        return self.case.batches(rows=80, batch_size=32)


@functools.cache
def case_of(cls: type[BaseModel]) -> TinyCase:
    """The backbone on tiny data, with what a method must not disturb: dropout, BatchNorm, regularizers."""
    try:
        return tiny_case(cls, **active_regularization(cls))
    except UserError:  # not every class of a checkout takes all of these
        return tiny_case(cls)


@functools.cache
def cell(name: str, method: str, on: bool = True) -> Cell:
    """The backbone of that name with a method.

    Raises:
        UserError: the backbone offers nothing that the method could use.
    """
    case = case_of(find_backbone(name))
    if method == "AllTaps":
        found = Cell(case, enhance(case.cls, AllTaps if on else Idle), {})
    elif method == "LLaCTR":
        settings = {"lambda_fre": 0.1, "lambda_fie": 0.2} if on else {"lambda_fre": 0.0, "lambda_fie": 0.0}
        found = Cell(case, enhance(case.cls, find_method(method).model_cls), settings | _field_vectors(case))
    elif method == "LLMEmb":
        case = _with_given_vectors(case)
        specs = [{"name": "btag", "pretrained_emb": case.feature_map.features["btag"]["pretrained_emb"]}]
        found = Cell(case, enhance(case.cls, find_method(method).model_cls), {"feature_specs": specs})
    else:
        weights = {"alpha": 0.5, "beta": 0.1} if on else {"alpha": 0.0, "beta": 0.0}
        found = Cell(case, distilled(case.cls), {**weights, "representation_loss": "hint"} | _teacher_width(case, on))
    found.build()
    return found


@functools.cache
def problem_of(name: str, method: str) -> str | None:
    """Why there is no such cell; None where there is."""
    try:
        cell(name, method)
    except UserError as error:
        return str(error)
    return None


@functools.cache
def trained(name: str, method: str) -> tuple[BaseModel, dict[str, torch.Tensor], list[float]]:
    """The model of a cell after one epoch, the method's parameters before it, and the losses; nobody changes it."""
    found = cell(name, method)
    model = found.build()
    before = {key: value.detach().clone() for key, value in model.enhancement.named_parameters()}
    return model, before, train(model, found.batches())


@functools.cache
def gain_teacher(cls: type[BaseModel]) -> Teacher:
    """A gain network that has been trained an epoch; its vectors are made from the rows' groups."""
    case = case_of(cls)
    model = case.build(gain_class(cls, "top"), seed=5, inject="top", vector_width=3)
    steps = case.batches(rows=64, batch_size=32)
    train(model, [with_vectors(only_columns(batch, columns_of(batch))) for batch in steps])
    return Teacher(model, add=with_vectors)


def predictions(model: BaseModel, steps: list) -> torch.Tensor:
    """`[B, T]` of all rows, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        return torch.cat([predictions_of(model, model.forward(batch)) for batch in steps])


def some_rows(batch, part: slice):
    """Those rows of a batch of either form."""
    if isinstance(batch, Mapping):
        return {name: column[part] for name, column in batch.items()}
    rows, items, mask = batch
    items = {name: column.view(len(mask), -1, *column.shape[1:])[part].flatten(0, 1) for name, column in items.items()}
    return some_rows(rows, part), items, mask[part]


def with_vectors(batch):
    """A vector a row, made from one of its columns of ids."""
    columns = columns_of(batch).values()
    ids = next(column for column in columns if column.dim() == 1 and not column.is_floating_point())
    rows = batch if isinstance(batch, Mapping) else batch[0]
    rows[VECTOR] = torch.sin(ids.view(-1, 1) * torch.arange(1.0, 4.0))
    return batch


def _teacher_width(case: TinyCase, on: bool) -> dict:
    return {"teacher_width": gain_teacher(case.cls).width or None} if on else {}


def _field_vectors(case: TinyCase) -> dict:
    path = Path(_folder.name) / f"{case.cls.__module__}.{case.cls.__name__}.safetensors"
    fields = find_anatomy(case.build()).fields
    if not fields:
        return {"field_vectors": "none"}
    write_field_vectors(path, torch.randn(len(fields), 9, generator=torch.Generator().manual_seed(3)), fields)
    return {"field_vectors": str(path)}


def _with_given_vectors(case: TinyCase) -> TinyCase:
    """The same with vectors for the values of `btag`, as FuxiCTR reads them of a built data set."""
    return replace(case, feature_map=with_random_vectors(case.feature_map, "btag", Path(_folder.name)))
