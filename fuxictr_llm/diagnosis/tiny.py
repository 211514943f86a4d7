"""A model class on a little data: what of the tiny data set it takes, built small; or on the data of a run."""

import inspect
import itertools
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel, MultiTaskModel
from fuxictr.pytorch.torch_utils import seed_everything
from torch import Tensor, nn

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.runs import Run
from fuxictr_llm.data.loader import make_loaders
from fuxictr_llm.diagnosis.tiny_columns import (
    EMBEDDING_DIM,
    HISTORIES,
    HISTORY_LENGTH,
    LABELS,
    NEGATIVES,
    tiny_batches,
    tiny_feature_map,
    tiny_long_batches,
)
from fuxictr_llm.enhancement.base import Enhancement
from fuxictr_llm.enhancement.model import enhance
from fuxictr_llm.host.batches import predictions_of
from fuxictr_llm.registry import find_backbone
from fuxictr_llm.training.build import build

# Types of features that a class may be unable to take.
OPTIONAL_TYPES = ("embedding", "meta", "numeric", "sequence")
BATCHES = (tiny_batches, tiny_long_batches)

_APG = {
    "hypernet_config": {"hidden_units": [8], "hidden_activations": "relu", "dropout_rates": 0},
    "rank_k": 4,
    "overparam_p": 8,
}
# What FuxiCTR's classes need beyond their defaults.
_NEEDED: dict[str, dict[str, Any]] = {
    "APG_DCNv2": _APG,
    "APG_DeepFM": _APG,
    "DMR": {"context_field": None},
    "PPNet": {"gate_priors": ["user_id", "item_id"]},
}
# What FuxiCTR's models of long histories take of them; they need one that is longer than `short_seq_len`.
_SHORT = {"short_seq_len": 2, "topk": 2, "max_len": HISTORY_LENGTH}
# What disturbs training if it is disturbed itself; most are off by default.
_REGULARIZATION = {
    "net_dropout": 0.1,
    "batch_norm": True,
    "regularizer": 1e-4,
    "embedding_regularizer": 1e-4,
    "net_regularizer": 1e-4,
}


@dataclass(frozen=True)
class TinyCase:
    """A class on the tiny data that it takes.

    Attributes:
        cls: the model class.
        feature_map: of the data.
        settings: constructor arguments.
        left_out: those of `OPTIONAL_TYPES` that the class cannot take, with its error.
        is_long: whether it takes the tuples of FuxiCTR's LongCTR loader.
    """

    cls: type[BaseModel]
    feature_map: FeatureMap
    settings: dict[str, Any]
    left_out: dict[str, str]
    is_long: bool = False

    def build(self, cls: Callable[..., BaseModel] | None = None, seed: int = 1, **changes: Any) -> BaseModel:
        """A model of the class, or of another one that is built like it, after seeding everything.

        Raises:
            UserError: the class cannot be built with these settings.
        """
        return build(cls or self.cls, self.feature_map, {**self.settings, "seed": seed, **changes})

    def enhanced(self, method: type[Enhancement], **changes: Any) -> BaseModel:
        """The class with the method, as `build` does."""
        return self.build(enhance(self.cls, method), **changes)

    def batches(self, rows: int = 150, batch_size: int = 64, seed: int = 0) -> list[Any]:
        """Seeded batches in the form that the class takes; the last one is short."""
        return BATCHES[self.is_long](self.feature_map, rows, batch_size, seed)

    def losses(self, model: BaseModel, batches: list[Any] | None = None) -> list[float]:
        """The losses of a short epoch's steps.

        Raises:
            UserError: training diverged.
        """
        try:
            losses = train(model, batches or self.batches())
        except RuntimeError as error:
            if "between 0 and 1" not in str(error):  # torch's cross entropy on predictions that are NaN
                raise
            losses = [math.nan]
        if not all(map(math.isfinite, losses)):
            raise UserError(f"training of {type(model).__name__} diverges")
        return losses

    def trained(self, model: BaseModel, batches: list[Any] | None = None) -> BaseModel:
        """The model after a short epoch.

        Raises:
            UserError: training diverged, or a parameter of the model's method did not move.
        """
        parameters = method_parameters(model)
        before = {name: value.detach().clone() for name, value in parameters.items()}
        self.losses(model, batches)
        unmoved = [name for name, value in parameters.items() if torch.equal(value, before[name])]
        if unmoved:
            more = f" and {len(unmoved) - 3} more parameters" if len(unmoved) > 3 else ""
            raise UserError(f"{', '.join(unmoved[:3])}{more} of {type(model).__name__} did not move")
        return model

    def predictions(self, model: BaseModel) -> Tensor:
        """`[B, T]` of all batches, in evaluation mode; seeded, as some models draw hashes."""
        model.eval()
        seed_everything(3)
        with torch.no_grad():
            return torch.cat([predictions_of(model, model.forward(batch)) for batch in self.batches()])


@dataclass(frozen=True)
class RunCase(TinyCase):
    """The model of an experiment, and the first rows of its train data.

    Attributes:
        steps: batches of the loader.
    """

    steps: tuple[Any, ...] = ()

    @classmethod
    def from_run(cls, run: Run, count: int = 3, batch_size: int = 256) -> "RunCase":
        """The case of a run whose data is built.

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


def tiny_case(cls: type[BaseModel], **changes: Any) -> TinyCase:
    """The tiny data that `cls` takes, found by training a step: as many of the types of features as possible.

    Args:
        cls: a FuxiCTR model class.
        changes: constructor arguments that win over those of `settings_for`.

    Raises:
        UserError: the class can be built or trained on none of them; with the reason.
    """
    settings = settings_for(cls, **changes)
    reasons: dict[tuple[bool, tuple[str, ...]], str] = {}
    numbers = range(len(OPTIONAL_TYPES) + 1)
    subsets = [subset for number in numbers for subset in itertools.combinations(OPTIONAL_TYPES, number)]
    for is_long, without in itertools.product((False, True), subsets):
        case = TinyCase(cls, tiny_feature_map_for(cls, settings, without), settings, {}, is_long)
        reason = reason_against(case)
        if reason is None:
            # An error that goes away with a type of features is about it.
            others = {kind: tuple(each for each in without if each != kind) for kind in without}
            case.left_out.update({kind: reasons[is_long, rest] for kind, rest in others.items()})
            return case
        reasons[is_long, without] = reason
    raise UserError(Counter(reasons.values()).most_common(1)[0][0])


def settings_for(cls: type[BaseModel], **changes: Any) -> dict[str, Any]:
    """Constructor arguments with which `cls` is small on tiny data: its defaults, with at most 8 units a layer."""
    settings: dict[str, Any] = {
        "model_id": f"{cls.__name__}_tiny",
        "gpu": -1,
        "task": "binary_classification",
        "learning_rate": 0.01,
        "embedding_dim": EMBEDDING_DIM,
        "optimizer": "adam",
        "loss": "binary_crossentropy",
        "metrics": ["AUC", "logloss"],
        "model_root": "tiny_models",
        "verbose": 0,
        "num_threads": torch.get_num_threads(),
    }
    if issubclass(cls, MultiTaskModel):
        settings["num_tasks"] = len(LABELS)
    for name, default in constructor_defaults(cls).items():
        if name.endswith("units") and isinstance(default, list):
            # Some of FuxiCTR's classes cannot be built with their default of no layer at all.
            settings[name] = [min(width, 8) for width in default] or [8]
        elif name in _SHORT:
            settings[name] = _SHORT[name]
    return settings | _NEEDED.get(cls.__name__, {}) | changes


def active_regularization(cls: type[BaseModel]) -> dict[str, Any]:
    """Constructor arguments that switch on dropout, BatchNorm and regularizers, as far as `cls` takes them."""
    takes = constructor_defaults(cls).keys()
    left_out = {"embedding_regularizer", "net_regularizer"} if "regularizer" in takes else set()
    return {name: value for name, value in _REGULARIZATION.items() if name in takes and name not in left_out}


def tiny_feature_map_for(
    cls: type[BaseModel], settings: Mapping[str, Any], without: Collection[str] = ()
) -> FeatureMap:
    """The feature map for the class: histories that its arguments name are whole, others pooled, and T labels."""
    named = set(_strings({**constructor_defaults(cls), **settings}))
    return tiny_feature_map(
        without,
        whole=[name for name in (*HISTORIES, *NEGATIVES) if name in named],
        tasks=settings.get("num_tasks", 1),
        embedding_dim=settings["embedding_dim"],
    )


def constructor_defaults(cls: type[BaseModel]) -> dict[str, Any]:
    """The defaults of the constructor's arguments, those of its base classes included."""
    defaults: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if "__init__" in vars(base):
            parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
            defaults |= {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}
    return defaults


def reason_against(case: TinyCase) -> str | None:
    """Why the class cannot be built and trained a step on the data; None where it can."""
    name, batch = case.cls.__name__, case.batches(rows=8)[0]
    try:
        model = case.build()
    except UserError as error:
        return str(error)
    try:
        outputs = model.forward(batch)
    except Exception as error:  # a user's class can fail in any way
        return f"{name} fails in forward: {_said(error)}"
    keys = {f"{label}_pred" for label in case.feature_map.labels}
    if not isinstance(outputs, Mapping) or not ("y_pred" in outputs or keys <= {*outputs}):
        return f"{name} cannot be tapped: its forward returns no 'y_pred'"
    try:
        train(model, [batch])
    except Exception as error:
        return f"{name} fails in a training step: {_said(error)}"
    return None


def train(model: BaseModel, batches: list[Any], seed: int = 2) -> list[float]:
    """Train with FuxiCTR's own step on the batches, in order, after seeding everything; the losses."""
    seed_everything(seed)
    model.train()
    model._max_gradient_norm = 0.5  # low enough to act
    losses = []
    for model._batch_index, batch in enumerate(batches):
        losses.append(model.train_step(batch).item())
    return losses


def method_parameters(model: BaseModel) -> dict[str, nn.Parameter]:
    """What the optimizer gets of the model's method; nothing of a plain model."""
    method = getattr(model, "enhancement", None)
    if method is None:
        return {}
    trained = {*method.trained_parameters()}
    return {name: value for name, value in method.named_parameters() if value in trained and value.requires_grad}


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {reason_of(error)}"


def _strings(value: Any) -> Iterator[str]:
    """All strings inside of nested lists, tuples and dicts."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _strings(item)
