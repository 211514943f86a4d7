"""What can be done with a model class: what each tap sees, and checks by real training on a little data.

Two add-ons try a backbone: `Idle` does nothing, `AllTaps` uses all taps. A method checks itself
(`Enhancement.self_check`).

Shape symbols: `F` fields, `D` embedding dim, `R` width of the representation, `T` tasks.
"""

import contextlib
import copy
import logging
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.diagnosis.tiny import (
    TinyCase,
    active_regularization,
    method_parameters,
    tiny_case,
    train,
)
from fuxictr_llm.diagnosis.zoo_table import ZooRow, failed
from fuxictr_llm.enhancement.anatomy import Anatomy, find_anatomy, tap_keys
from fuxictr_llm.enhancement.base import Enhancement, ForwardTrace, NotTried
from fuxictr_llm.registry import find_backbone, find_method

Check = Callable[[TinyCase], str]  # raises UserError with the reason
COPIES: dict[str, Callable[[BaseModel], BaseModel]] = {
    "deep copy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),  # noqa: S301 (what was pickled a line before)
}


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
        width, dim = sum(anatomy.widths), anatomy.embedding_dim
        self.shift = nn.Parameter(torch.full((width,), 0.1)) if width else None
        self.pull = None if dim is None else nn.Parameter(torch.full((dim,), 0.1))
        self.weight = nn.Parameter(torch.full((len(anatomy.tasks),), 0.3))

    def active_taps(self) -> frozenset[str]:
        without = {"representation": self.shift is None, "embeddings": self.pull is None, "loss": self.pull is None}
        return super().active_taps() - {tap for tap, is_missing in without.items() if is_missing}

    def inputs(self, inputs: Any) -> None:
        """Read, so that this tap is active."""

    def embeddings(self, embeddings: Tensor) -> None:
        """Read, so that this tap is active."""

    def representation(self, representation: Tensor) -> Tensor:
        assert self.shift is not None  # or this tap is not active
        return representation + self.shift

    def logit(self, embeddings: Tensor, logit: Tensor) -> Tensor:
        return self.weight * logit.detach().tanh()

    def loss(self, trace: ForwardTrace, y_true: Tensor) -> Tensor:
        assert self.pull is not None  # or this tap is not active
        return ((trace.embeddings - self.pull) ** 2).mean()


@dataclass(frozen=True)
class Finding:
    """How a check went: what was seen, or why it failed or could not be done."""

    outcome: Literal["passed", "failed", "not tried"]
    text: str

    @property
    def cell(self) -> str:
        """For a table that has no column for the outcome."""
        return f"not tried: {self.text}" if self.outcome == "not tried" else self.text


def anatomy_of(case: TinyCase) -> Anatomy:
    """What the taps find in the class.

    Raises:
        UserError: `tap_embedding` or `tap_representation` names no module that can be taken, or there is no prediction.
    """
    with quiet():
        return find_anatomy(case.build(), **tap_keys(case.settings))


def run_check(check: Check, case: TinyCase) -> Finding:
    """Do a check; an error in it, of any kind, is its finding."""
    try:
        with quiet():
            return Finding("passed", check(case))
    except NotTried as error:
        return Finding("not tried", str(error))
    except UserError as error:
        return Finding("failed", str(error))
    except Exception as error:  # anyone's class can fail in any way
        return Finding("failed", f"{type(error).__name__}: {reason_of(error)}")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no logging: the data is made up, and errors become findings."""
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
    plain, idle = case.build(**changes), case.enhanced(Idle, **changes)
    _check_same_state(plain.state_dict(), idle.backbone_state_dict(), "before training")
    losses = case.losses(plain)
    if losses != case.losses(idle):
        raise UserError("the losses of training differ")
    _check_same_state(plain.state_dict(), idle.backbone_state_dict(), "after training")
    return f"{len(losses)} steps"


def parameters_move(case: TinyCase) -> str:
    """Every parameter of a method that uses all taps is changed by training."""
    moved = len(method_parameters(case.trained(case.enhanced(AllTaps))))
    return f"{moved} of {moved} parameters"


def state_loads(case: TinyCase) -> str:
    """The trained backbone's state loads strictly into the plain class."""
    model = case.trained(case.enhanced(AllTaps))
    plain = case.build(seed=5)
    try:
        plain.load_state_dict(model.backbone_state_dict(), strict=True)
    except RuntimeError as error:
        raise UserError(" ".join(str(error).split())) from error
    _check_same_state(plain.state_dict(), model.backbone_state_dict(), "after loading")
    return f"{len(plain.state_dict())} tensors"


def copies_are_independent(case: TinyCase) -> str:
    """A deep copy and an unpickled model predict the same, and training them leaves the original as it is."""
    model = case.trained(case.enhanced(AllTaps))
    before = case.predictions(model)
    for kind, duplicate in COPIES.items():
        try:
            twin = duplicate(model)
        except Exception as error:
            also = "" if _works(lambda: duplicate(case.build())) else "; nor can the plain class's be made"  # noqa: B023
            raise UserError(f"{kind}: {type(error).__name__}: {reason_of(error)}{also}") from error
        if not torch.equal(before, case.predictions(twin)):
            raise UserError(f"{kind}: it predicts something else")
        train(twin, case.batches())
        if not torch.equal(before, case.predictions(model)):
            raise UserError(f"{kind}: training it changes the original")
    return " and ".join(COPIES)


def compiles(case: TinyCase) -> str:
    """torch.compile takes forward with all taps active as a whole, if it takes the plain class's."""
    plain, tapped = case.build(), case.enhanced(AllTaps)
    own = _graph_break(plain, case)
    if own:
        return f"{_graph_breaks(plain, case)} of its own: {own}"
    if reason := _graph_break(tapped, case):
        raise UserError(f"{_graph_breaks(tapped, case)}, without taps none: {reason}")
    return "none"


CHECKS: dict[str, Check] = {
    "idle plugin trains as the plain class": idle_is_plain,
    "method's parameters all move": parameters_move,
    "state loads into the plain class": state_loads,
    "copies": copies_are_independent,
    "graph breaks of torch.compile": compiles,
}


def method_check(method: type[Enhancement]) -> Check:
    """A method's own check of itself."""

    def check(case: TinyCase) -> str:
        missing = " and ".join(method.self_check(case))
        return f"works without {missing}" if missing else "works"

    return check


def look_at(name: str, methods: Sequence[str]) -> ZooRow:
    """The row of a backbone in the table of a zoo.

    Args:
        name: of the backbone.
        methods: what `registry.find_method` takes.
    """
    torch.set_num_threads(1)  # other processes do the same
    registered = [find_method(method) for method in methods]
    try:
        with quiet():
            case = tiny_case(find_backbone(name))
        anatomy = anatomy_of(case)
    except UserError as error:
        return failed(name, [method.name for method in registered], str(error))
    findings = {method.name: run_check(method_check(method.model_cls), case) for method in registered}
    hidden = "" if all(anatomy.activations) else ", its own sigmoid"
    return ZooRow(
        backbone=name,
        methods={method: finding.cell for method, finding in findings.items()},
        without=", ".join(case.left_out),
        embeddings=f"{len(anatomy.fields)}/{case.feature_map.num_fields}"
        + (f", D {anatomy.embedding_dim}" if anatomy.fields else ""),
        tasks=f"{len(anatomy.tasks)}{hidden}",
        representation=" + ".join(map(str, anatomy.widths)) or (f"({sum(anatomy.dims)})" if anatomy.dims else "none"),
    )


def _check_same_state(first: Mapping[str, Tensor], second: Mapping[str, Tensor], when: str) -> None:
    if first.keys() != second.keys():
        raise UserError(f"{min(first.keys() ^ second.keys())} is not in both states {when}")
    different = [name for name, value in first.items() if not torch.equal(value, second[name])]
    if different:
        raise UserError(f"{different[0]} differs {when}")


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
