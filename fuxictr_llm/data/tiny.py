"""A tiny data set with features of every type, made in memory, on which any FuxiCTR model can be looked at.

Its fields have the names that FuxiCTR's constructors expect by default (`item_id`, `click_history`, ...).
"""

import inspect
import itertools
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel, MultiTaskModel
from fuxictr.pytorch.torch_utils import seed_everything
from torch import Tensor

from fuxictr_llm.errors import UserError, reason_of

EMBEDDING_DIM = 4
LABELS = ("click", "buy")
POOLED = "layers.MaskedAveragePooling()"
# The histories of item and category; models of a history name them, others have them pooled.
HISTORIES = {"click_history": "item_id", "cate_history": "cate_id"}
NEGATIVES = {"neg_click_history": "item_id", "neg_cate_history": "cate_id"}
# Types that a class may be unable to take.
OPTIONAL_TYPES = ("embedding", "meta", "numeric", "sequence")

_CATEGORICAL = {
    "user_id": ("user", 14),
    "gender": ("user", 4),
    "item_id": ("item", 20),
    "cate_id": ("item", 8),
    "btag": ("context", 6),
}
_APG = {
    "hypernet_config": {"hidden_units": [8], "hidden_activations": "relu", "dropout_rates": 0},
    "rank_k": 4,
    "overparam_p": 8,
}
# What FuxiCTR's classes need beyond their defaults.
_NEEDED = {
    "APG_DCNv2": _APG,
    "APG_DeepFM": _APG,
    "DMR": {"context_field": None},
    "PPNet": {"gate_priors": ["user_id", "item_id"]},
}


@dataclass(frozen=True)
class TinyCase:
    """A class on the tiny data that it takes.

    Attributes:
        cls: the model class.
        feature_map: of the data.
        settings: constructor arguments.
        left_out: those of `OPTIONAL_TYPES` that the class cannot take, with its error.
    """

    cls: type[BaseModel]
    feature_map: FeatureMap
    settings: dict[str, Any]
    left_out: dict[str, str]

    def build(self, cls: type[BaseModel] | None = None, seed: int = 1, **changes: Any) -> BaseModel:
        """A model of the class, or of another one that is built like it, after seeding everything."""
        seed_everything(seed)
        return (cls or self.cls)(self.feature_map, **{**self.settings, **changes})

    def batches(self, rows: int = 150, batch_size: int = 64, seed: int = 0) -> list[dict[str, Tensor]]:
        """Those of `tiny_batches`."""
        return tiny_batches(self.feature_map, rows, batch_size, seed)


def tiny_case(cls: type[BaseModel], **changes: Any) -> TinyCase:
    """The tiny data that `cls` takes, found by training a step: as many of the types of features as possible.

    Args:
        cls: a FuxiCTR model class.
        changes: constructor arguments that win over those of `settings_for`.

    Raises:
        UserError: the class can be built or trained on none of them; with the reason.
    """
    settings = settings_for(cls, **changes)
    reasons: dict[tuple[str, ...], str] = {}
    for number in range(len(OPTIONAL_TYPES) + 1):
        for without in itertools.combinations(OPTIONAL_TYPES, number):
            case = TinyCase(cls, tiny_feature_map_for(cls, settings, without), settings, {})
            reason = _reason_against(case)
            if reason is None:
                # An error that goes away with a type of features is about it.
                case.left_out.update({kind: reasons[_others(without, kind)] for kind in without})
                return case
            reasons[without] = reason
    raise UserError(f"{cls.__name__} {Counter(reasons.values()).most_common(1)[0][0]}")


def tiny_feature_map(
    without: Collection[str] = (),
    whole: Collection[str] = (),
    tasks: int = 1,
    embedding_dim: int = EMBEDDING_DIM,
    dataset_id: str = "tiny",
) -> FeatureMap:
    """The feature map: categorical, numeric, sequence and embedding features of user, item and context, and a meta.

    Args:
        without: types of `OPTIONAL_TYPES`, or names of features, to leave out.
        whole: names of histories that the model pools itself; the others are averaged. Those of `NEGATIVES` are
            there only if they are named.
        tasks: T, the number of labels, 1 or 2.
    """
    features = OrderedDict()
    for name, (source, vocab_size) in _CATEGORICAL.items():
        features[name] = _ids(source, vocab_size)
    features["price"] = {"type": "numeric", "source": "item"}
    for name, shared in {**HISTORIES, **NEGATIVES}.items():
        if name in HISTORIES or name in whole:
            encoder = {} if name in whole else {"feature_encoder": POOLED}
            spec = _ids("user", _CATEGORICAL[shared][1], type="sequence", max_len=5, share_embedding=shared)
            features[name] = spec | encoder
    features["tags"] = _ids("item", 7, type="sequence", max_len=3, feature_encoder=POOLED)
    features["image"] = {"type": "embedding", "source": "item", "pretrain_dim": 6}
    features["group_id"] = {"type": "meta"}
    feature_map = FeatureMap(dataset_id, "")
    feature_map.features = OrderedDict(
        (name, spec) for name, spec in features.items() if name not in without and spec["type"] not in without
    )
    feature_map.labels = list(LABELS[:tasks])
    feature_map.num_fields = feature_map.get_num_fields()
    feature_map.default_emb_dim = embedding_dim
    feature_map.set_column_index()
    return feature_map


def tiny_batches(
    feature_map: FeatureMap, rows: int = 150, batch_size: int = 64, seed: int = 0
) -> list[dict[str, Tensor]]:
    """Batches in the form and the dtypes of the loaders; the last one is short, for 150 rows 22.

    Ids are drawn with the unseen value's among them, and some histories are padding only. The labels
    depend on `gender` and `cate_id`, so that there is something to learn.
    """
    draw = np.random.default_rng(seed)
    columns = {name: _column(name, spec, rows, draw) for name, spec in feature_map.features.items()}
    halves = [columns[name] >= _CATEGORICAL[name][1] / 2 for name in ("gender", "cate_id") if name in columns]
    chance = 0.15 + 0.7 * np.logical_xor.reduce(halves) if halves else np.full(rows, 0.5)
    for task, label in enumerate(feature_map.labels):
        columns[label] = (draw.random(rows) < chance / (1 + task)).astype(np.float64)
    tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
    starts = range(0, rows, batch_size)
    return [{name: column[start : start + batch_size] for name, column in tensors.items()} for start in starts]


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
    }
    if issubclass(cls, MultiTaskModel):
        settings["num_tasks"] = len(LABELS)
    for name, default in _defaults(cls).items():
        if name.endswith("units") and isinstance(default, list):
            # Some of FuxiCTR's classes cannot be built with their default of no layer at all.
            settings[name] = [min(width, 8) for width in default] or [8]
    return settings | _NEEDED.get(cls.__name__, {}) | changes


def tiny_feature_map_for(
    cls: type[BaseModel], settings: Mapping[str, Any], without: Collection[str] = ()
) -> FeatureMap:
    """The feature map for the class: histories that its arguments name are whole, others pooled, and T labels."""
    named = set(_strings({**_defaults(cls), **settings}))
    return tiny_feature_map(
        without,
        whole=[name for name in (*HISTORIES, *NEGATIVES) if name in named],
        tasks=settings.get("num_tasks", 1),
        embedding_dim=settings["embedding_dim"],
    )


def _reason_against(case: TinyCase) -> str | None:
    """Why the class cannot be built and trained a step on the data; None where it can."""
    try:
        model = case.build()
    except Exception as error:  # a user's class can fail in any way
        # FuxiCTR says of every error of an optimizer that it is not supported.
        if "empty parameter list" in f"{error} {error.__context__}":
            return "has no trainable parameter"
        return f"cannot be built: {_said(error)}"
    batch = case.batches(rows=8)[0]
    try:
        outputs = model.forward(batch)
    except Exception as error:
        return f"fails in forward: {_said(error)}"
    labels = case.feature_map.labels
    if not isinstance(outputs, Mapping) or not (
        "y_pred" in outputs or {f"{each}_pred" for each in labels} <= {*outputs}
    ):
        return "cannot be tapped: its forward returns no 'y_pred'"
    try:
        model._max_gradient_norm = 10.0
        model.train()
        model.train_step(batch)
    except Exception as error:
        return f"fails in a training step: {_said(error)}"
    return None


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {reason_of(error)}"


def _others(without: tuple[str, ...], kind: str) -> tuple[str, ...]:
    return tuple(each for each in without if each != kind)


def _ids(source: str, vocab_size: int, type: str = "categorical", **more: Any) -> dict[str, Any]:
    """Id 0 is padding; the last one is that of unseen values, as in the data sets that FuxiCTR builds."""
    return {"type": type, "source": source, "padding_idx": 0, "vocab_size": vocab_size, **more}


def _column(name: str, spec: Mapping[str, Any], rows: int, draw: np.random.Generator) -> np.ndarray:
    if spec["type"] == "categorical":
        return draw.integers(1, spec["vocab_size"], rows)
    if spec["type"] == "sequence":
        ids = draw.integers(1, spec["vocab_size"], (rows, spec["max_len"])).astype(np.int32)
        if name in NEGATIVES:
            return ids
        # FuxiCTR pads in front. The rows' lengths are the same in all histories, as they are of the same clicks.
        lengths = np.arange(rows) % (spec["max_len"] + 1)
        return np.where(np.arange(spec["max_len"]) >= spec["max_len"] - lengths[:, None], ids, np.int32(0))
    if spec["type"] == "embedding":
        return draw.normal(size=(rows, spec["pretrain_dim"])).astype(np.float32)
    if spec["type"] == "meta":
        return draw.integers(0, 5, rows)
    return draw.random(rows)


def _defaults(cls: type[BaseModel]) -> dict[str, Any]:
    """The defaults of the constructor, those of its base classes included."""
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters.values()
            found |= {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}
    return found


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
