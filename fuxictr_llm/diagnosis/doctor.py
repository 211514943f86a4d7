"""What can be done with a model class: what each tap finds, and what real runs on a little data show.

Shape symbols: `F` fields, `D` embedding dim, `R` width of the representation, `T` tasks.
"""

import contextlib
import copy
import itertools
import logging
import math
import pickle
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import seed_everything
from torch import Tensor, nn

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.data.loader import make_loaders
from fuxictr_llm.diagnosis.tiny import TinyCase, active_regularization, reason_against, train
from fuxictr_llm.distillation import Teacher, distilled
from fuxictr_llm.enhancement.anatomy import Anatomy, find_anatomy, tap_keys
from fuxictr_llm.enhancement.base import Enhancement
from fuxictr_llm.enhancement.model import enhance
from fuxictr_llm.enhancement.trace import ForwardTrace
from fuxictr_llm.host.batches import columns_of
from fuxictr_llm.host.tasks import predictions_of
from fuxictr_llm.model_zoo.ELEC.gain import gain_class
from fuxictr_llm.model_zoo.ELEC.head import VECTOR
from fuxictr_llm.model_zoo.LLaCTR.vector_file import write_field_vectors
from fuxictr_llm.registry import find_backbone, find_method


class Idle(Enhancement):
    """Has a layer, and taps that are all switched off."""

    method_name = "Idle"

    def __init__(self, config: Any, anatomy: Anatomy):
        super().__init__(config, anatomy)
        self.layer = nn.Linear(3, 3)

    def active_taps(self) -> frozenset[str]:
        return frozenset()


class AllTaps(Enhancement):
    """Uses the taps that the backbone has, with a parameter in each term that it returns."""

    method_name = "AllTaps"

    def __init__(self, config: Any, anatomy: Anatomy):
        super().__init__(config, anatomy)
        width = sum(anatomy.widths)
        self.shift = nn.Parameter(torch.full((width,), 0.1)) if width else None
        self.pull = nn.Parameter(torch.full((anatomy.embedding_dim,), 0.1)) if anatomy.fields else None
        self.weight = nn.Parameter(torch.full((len(anatomy.tasks),), 0.3))

    def active_taps(self) -> frozenset[str]:
        without = {"representation": self.shift is None, "embeddings": self.pull is None, "loss": self.pull is None}
        return super().active_taps() - {tap for tap, is_missing in without.items() if is_missing}

    def inputs(self, inputs: Any) -> None:
        """Read, so that this tap is active."""

    def embeddings(self, embeddings: Tensor) -> None:
        """Read, so that this tap is active."""

    def representation(self, representation: Tensor) -> Tensor:
        return representation + self.shift

    def logit(self, embeddings: Tensor, logit: Tensor) -> Tensor:
        return self.weight * logit.detach().tanh()

    def loss(self, trace: ForwardTrace, y_true: Tensor) -> Tensor:
        return ((trace.embeddings - self.pull) ** 2).mean()


VECTOR_WIDTH = 8  # of the stand-ins for a language model's vectors


@dataclass(frozen=True)
class Finding:
    """How a check went: `text` is what was found, or why it failed."""

    passed: bool
    text: str


@dataclass(frozen=True)
class RunCase(TinyCase):
    """The model of an experiment, and the first rows of its train data.

    Attributes:
        steps: batches of the loader.
    """

    steps: tuple[Any, ...] = ()

    @classmethod
    def of(cls, run: Any, count: int = 3, batch_size: int = 256) -> "RunCase":
        """Of a run whose data is built.

        Raises:
            UserError: the class cannot be built or trained on it.
        """
        params = {**run.params, "batch_size": min(batch_size, run.params["batch_size"]), "shuffle": False}
        train_rows, _ = make_loaders(run.feature_map, params, "train")
        backbone = find_backbone(params["model"])
        case = cls(backbone, run.feature_map, params, {}, steps=tuple(itertools.islice(train_rows, count)))
        if reason := reason_against(case):
            raise UserError(reason)
        return case

    def batches(self, *_: Any, **__: Any) -> list[Any]:
        return list(self.steps)


class CheckFailed(Exception):
    """A check came to its end and what it looked at is not so."""


def anatomy_of(case: TinyCase) -> Anatomy:
    """What the taps find in the class.

    Raises:
        UserError: `tap_embedding` or `tap_representation` names no module that can be taken, or there is no prediction.
    """
    with quiet():
        return find_anatomy(case.build(), **tap_keys(case.settings))


def run_check(name: str, case: TinyCase) -> Finding:
    """Do one of `CHECKS`; whatever goes wrong in it is its finding."""
    try:
        with quiet():
            return Finding(True, CHECKS[name](case))
    except (CheckFailed, UserError) as error:
        return Finding(False, str(error))
    except Exception as error:  # anyone's class can fail in any way
        return Finding(False, f"{type(error).__name__}: {reason_of(error)}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no logging: FuxiCTR's, torch's and ours are about data and errors that are no one's."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def idle_is_plain(case: TinyCase) -> str:
    """With no tap active, initial weights and training are the plain class's, bit by bit; with dropout and so on."""
    changes = active_regularization(case.cls)
    plain, idle = case.build(**changes), case.build(enhance(case.cls, Idle), **changes)
    _check_same_state(plain.state_dict(), idle.backbone_state_dict(), "before training")
    losses = _losses(plain, case.batches())
    if losses != _losses(idle, case.batches()):
        raise CheckFailed("the losses of training differ")
    _check_same_state(plain.state_dict(), idle.backbone_state_dict(), "after training")
    return f"{len(losses)} steps"


def parameters_move(case: TinyCase) -> str:
    """Every parameter of a method that uses all taps is changed by training."""
    _, moved = _trained(case, case.build(enhance(case.cls, AllTaps)))
    return f"{moved} of {moved} parameters"


def state_loads(case: TinyCase) -> str:
    """The trained backbone's state loads strictly into the plain class."""
    model, _ = _trained(case, case.build(enhance(case.cls, AllTaps)))
    plain = case.build(seed=5)
    try:
        plain.load_state_dict(model.backbone_state_dict(), strict=True)
    except RuntimeError as error:
        raise CheckFailed(" ".join(str(error).split())) from error
    _check_same_state(plain.state_dict(), model.backbone_state_dict(), "after loading")
    return f"{len(plain.state_dict())} tensors"


def copies_are_independent(case: TinyCase) -> str:
    """A deep copy and an unpickled model predict the same, and training them leaves the original as it is."""
    model, _ = _trained(case, case.build(enhance(case.cls, AllTaps)))
    before = _predictions(model, case)
    for kind, duplicate in COPIES.items():
        try:
            twin = duplicate(model)
        except Exception as error:
            also = "" if _works(lambda: duplicate(case.build())) else "; nor can the plain class's be made"  # noqa: B023
            raise CheckFailed(f"{kind}: {type(error).__name__}: {reason_of(error)}{also}") from error
        if not torch.equal(before, _predictions(twin, case)):
            raise CheckFailed(f"{kind}: it predicts something else")
        train(twin, case.batches())
        if not torch.equal(before, _predictions(model, case)):
            raise CheckFailed(f"{kind}: training it changes the original")
    return " and ".join(COPIES)


COPIES: dict[str, Callable[[BaseModel], BaseModel]] = {
    "deep copy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),  # noqa: S301 (what was pickled a line before)
}


def compiles(case: TinyCase) -> str:
    """torch.compile takes forward with all taps active as a whole, if it takes the plain class's."""
    plain, tapped = case.build(), case.build(enhance(case.cls, AllTaps))
    own = _graph_break(plain, case)
    if own:
        return f"{_graph_breaks(plain, case)} of its own: {own}"
    if reason := _graph_break(tapped, case):
        raise CheckFailed(f"{_graph_breaks(tapped, case)}, without taps none: {reason}")
    return "none"


def llactr_trains(case: TinyCase) -> str:
    """LLaCTR with random field vectors trains."""
    method = find_method("LLaCTR")
    fields = [name for name, spec in case.feature_map.features.items() if spec["type"] != "meta"]
    vectors = torch.randn(len(fields), VECTOR_WIDTH, generator=torch.Generator().manual_seed(3))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vectors.safetensors"
        write_field_vectors(file, vectors, fields)
        model = case.build(enhance(case.cls, method.model_cls), field_vectors=str(file))
    _trained(case, model)
    terms = {"FRE": model.enhancement.fre, "FIE": model.enhancement.fie}
    return _works_without(term for term, part in terms.items() if part is None)


def elec_trains(case: TinyCase) -> str:
    """A gain network with random vectors trains, and a student learns from it."""
    make_gain = gain_class(case.cls, "top")
    gain = make_gain(case.feature_map, **{**case.settings, "h_dim": VECTOR_WIDTH, "inject": "top"})
    _trained(case, gain, [_with_vectors(batch) for batch in case.batches()])
    teacher = Teacher(gain, add=_with_vectors, taps=tap_keys(case.settings))
    student = case.build(distilled(case.cls), alpha=0.5, beta=0.1)
    student.enhancement.learn_from(teacher)
    _trained(case, student)
    plain = case.build()
    _losses(plain, case.batches())
    if torch.equal(_predictions(plain, case), _predictions(student, case)):
        raise CheckFailed("the student trains as if it had no teacher")
    return _works_without([] if student.enhancement.compares_representations else ["the representation loss"])


CHECKS: dict[str, Callable[[TinyCase], str]] = {
    "idle plugin trains as the plain class": idle_is_plain,
    "method's parameters all move": parameters_move,
    "state loads into the plain class": state_loads,
    "copies": copies_are_independent,
    "graph breaks of torch.compile": compiles,
    "LLaCTR": llactr_trains,
    "ELEC": elec_trains,
}


def _trained(case: TinyCase, model: BaseModel, batches: list[Any] | None = None) -> tuple[BaseModel, int]:
    """The model after a short epoch, in which its method's parameters have moved; how many they are."""
    before = {name: value.detach().clone() for name, value in model.enhancement.named_parameters()}
    _losses(model, batches or case.batches())
    still = [name for name, value in model.enhancement.named_parameters() if torch.equal(value, before[name])]
    if still:
        raise CheckFailed(f"{', '.join(still)} of {type(model).__name__} did not move")
    return model, len(before)


def _losses(model: BaseModel, batches: list[Any]) -> list[float]:
    try:
        losses = train(model, batches)
    except RuntimeError as error:
        if "between 0 and 1" not in str(error):  # what torch's cross entropy says of predictions that are NaN
            raise
        losses = [math.nan]
    if not all(map(math.isfinite, losses)):
        raise CheckFailed(f"training of {type(model).__name__} diverges")
    return losses


def _check_same_state(first: Mapping[str, Tensor], second: Mapping[str, Tensor], when: str) -> None:
    if first.keys() != second.keys():
        raise CheckFailed(f"{min(first.keys() ^ second.keys())} is not in both states {when}")
    different = [name for name, value in first.items() if not torch.equal(value, second[name])]
    if different:
        raise CheckFailed(f"{different[0]} differs {when}")


def _predictions(model: BaseModel, case: TinyCase) -> Tensor:
    """`[B, T]` in evaluation mode; seeded, as some models draw hashes."""
    model.eval()
    seed_everything(3)
    with torch.no_grad():
        return torch.cat([predictions_of(model, model.forward(batch)) for batch in case.batches()])


def _graph_break(model: BaseModel, case: TinyCase) -> str:
    """Why torch.compile does not take forward as a whole; empty where it does."""
    torch.compiler.reset()
    model.eval()
    try:
        with torch.no_grad():
            torch.compile(model.forward, backend="eager", fullgraph=True)(case.batches()[0])
    except torch._dynamo.exc.TorchDynamoException as error:
        return reason_of(error)
    return ""


def _graph_breaks(model: BaseModel, case: TinyCase) -> int:
    torch.compiler.reset()
    with torch.no_grad():
        return torch._dynamo.explain(model.eval().forward)(case.batches()[0]).graph_break_count


def _works(action: Callable[[], Any]) -> bool:
    try:
        action()
    except Exception:
        return False
    return True


def _with_vectors(batch: Any) -> Any:
    """The batch with a vector for each row, that depends on nothing but the row's first column."""
    columns = columns_of(batch)
    first = next(iter(columns.values()))
    vectors = torch.sin(first.float().view(-1, 1) * torch.arange(1.0, VECTOR_WIDTH + 1))
    return {**batch, VECTOR: vectors} if isinstance(batch, Mapping) else ({**batch[0], VECTOR: vectors}, *batch[1:])


def _works_without(parts: Iterator[str] | list[str]) -> str:
    missing = " and ".join(parts)
    return f"works without {missing}" if missing else "works"
