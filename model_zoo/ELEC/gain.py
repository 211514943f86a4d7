"""The gain network: a backbone that also sees a language model's vector of the row (ELEC, arXiv 2509.07594).

All that it adds starts at zero, so that it starts as its backbone does and leans on words only as far as they help.

Shape symbols: `B` rows, `R` width of the representation, `S` width of the injected vector, `D_h` width of its
transformation, `T` tasks.
"""

import logging
from functools import partial
from typing import Any, Literal

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fuxictr_llm.common.checks import STRICT
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.enhancement.anatomy import Anatomy
from fuxictr_llm.enhancement.base import Enhancement
from fuxictr_llm.enhancement.columns import AddedColumn, encoder_parameters
from fuxictr_llm.enhancement.model import enhance
from fuxictr_llm.host.batches import columns_of, moved_to
from fuxictr_llm.host.embeddings import VECTOR_SCALE

from .head import VECTOR, with_vector


@dataclass(config=STRICT, kw_only=True)
class GainConfig:
    """Where the vector goes, its width S, and, of `inject_vector: joint`, how it is transformed."""

    inject: Literal["top", "logit", "input"] = "top"
    inject_vector: Literal["joint", "h", "s"] = "joint"
    vector_width: int
    h_dim: int = 32
    h_hidden: int = 64
    h_dropout: float = 0.0


class Transformation(nn.Sequential):
    """`[B, S] -> [B, D_h]`, learnt with the network that it is part of. The vectors are standardized before."""

    def __init__(self, width: int, hidden: int, out: int, dropout: float):
        super().__init__(
            nn.Dropout(dropout), nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, out)
        )


class Gain(Enhancement):
    """`top`: `r_g = r + V relu(W [r ; t(x)] + b) + c` in front of the logit layer; `logit`: `w t(x) + b` is added.

    x is the vector, t its transformation, or the identity. V, w, b and c start at zero.

    Args:
        config: where the vector goes.
        anatomy: the backbone's; one without a representation takes `logit` for `top`.
    """

    method_name = "Gain"
    config_cls = GainConfig
    reads_embeddings = False

    def __init__(self, config: GainConfig, anatomy: Anatomy):
        super().__init__(config, anatomy)
        width, given = sum(anatomy.widths), config.vector_width
        self.inject = config.inject if anatomy.widths else "logit"
        self.transformation: nn.Module | None = None
        if config.inject_vector == "joint":
            self.transformation = Transformation(given, config.h_hidden, config.h_dim, config.h_dropout)
            given = config.h_dim
        self.mix = nn.Linear(width + given, width) if self.inject == "top" else None
        self.term = nn.Linear(width, width) if self.inject == "top" else nn.Linear(given, len(anatomy.tasks))
        nn.init.zeros_(self.term.weight)
        nn.init.zeros_(self.term.bias)
        self._vectors: Tensor | None = None  # of the batch in the forward pass

    def active_taps(self) -> frozenset[str]:
        return frozenset({"inputs", "representation" if self.inject == "top" else "logit"})

    def inputs(self, inputs: Any) -> None:
        self._vectors = columns_of(inputs)[VECTOR]

    def representation(self, representation: Tensor) -> Tensor:
        assert self.mix is not None  # or this tap is not active
        mixed = self.mix(torch.cat([representation, self._take(representation)], dim=-1))
        return representation + self.term(mixed.relu())

    def logit(self, embeddings: Any, logit: Tensor) -> Tensor:
        return self.term(self._take(logit))

    def _take(self, like: Tensor) -> Tensor:
        """The vectors of the batch in the forward pass, once, transformed."""
        vectors, self._vectors = self._vectors, None
        assert vectors is not None  # `inputs` is called first
        vectors = moved_to(like.device, vectors).to(like.dtype)
        return vectors if self.transformation is None else self.transformation(vectors)


class InputGain(Enhancement):
    """`input`: one more column of the backbone, which each of its tables reads as `P t(x)`.

    P starts at the scale of the fresh embeddings beside it.

    Args:
        config: the width of the vector and, of `joint`, how it is transformed.
        anatomy: the backbone's.
    """

    method_name = "InputGain"
    config_cls = GainConfig
    reads_embeddings = False

    @classmethod
    def columns(cls, config: GainConfig, feature_map: FeatureMap) -> dict[str, AddedColumn]:
        return {VECTOR: AddedColumn(config.vector_width, partial(_encoder, config))}


def _encoder(config: GainConfig, width: int) -> nn.Module:
    """`[B, S] -> [B, width]`."""
    parts: list[nn.Module] = []
    if config.inject_vector == "joint":
        parts = [Transformation(config.vector_width, config.h_hidden, config.h_dim, config.h_dropout)]
    projection = nn.Linear(config.h_dim if parts else config.vector_width, width, bias=False)
    nn.init.normal_(projection.weight, std=VECTOR_SCALE)
    return nn.Sequential(*parts, projection)


class _TappedGain:
    """As `enhance(backbone, Gain)`, on the plain feature map; it warns where the vector goes elsewhere."""

    def __init__(self, backbone: type[BaseModel]):
        self.backbone_cls, self.cls = backbone, enhance(backbone, Gain)
        self.__name__ = self.cls.__name__

    def __call__(self, feature_map: FeatureMap, **params: Any) -> BaseModel:
        model = self.cls(with_vector(feature_map, params["vector_width"]), **params)
        if model.enhancement.inject != params["inject"]:
            logging.warning(
                "inject: %s: %s has no representation in front of its logit, so the vector goes into the logit",
                params["inject"],
                model.backbone_cls.__name__,
            )
        return model


def gain_class(backbone: type[BaseModel], inject: str) -> Any:
    """What builds a gain network: called with the plain feature map and params, with `vector_width` among them."""
    return enhance(backbone, InputGain) if inject == "input" else _TappedGain(backbone)


def added_parameters(model: BaseModel) -> list[nn.Parameter]:
    """What a gain network has more than its backbone; the first layers of the backbone may be wider besides."""
    return [*model.enhancement.parameters(), *encoder_parameters(model)]


def train_only_added(model: BaseModel) -> None:
    """Leave the backbone as it is: its weights, and the statistics of its BatchNorm layers."""
    added = {*added_parameters(model)}
    for weight in model.parameters():
        weight.requires_grad_(weight in added)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 0.0
    for group in model.optimizer.param_groups:
        group["params"] = [weight for weight in group["params"] if weight in added]


def decay_apart(model: BaseModel, weight_decay: float) -> None:
    """Give what the gain network adds a weight decay of its own.

    Raises:
        UserError: the optimizer has none.
    """
    if not weight_decay:
        return
    if "weight_decay" not in model.optimizer.defaults:
        raise UserError(f"optimizer {type(model.optimizer).__name__} has no weight decay; set h_decay: 0")
    added = {*added_parameters(model)}
    for group in model.optimizer.param_groups:
        group["params"] = [weight for weight in group["params"] if weight not in added]
    others = [group for group in model.optimizer.param_groups if group["params"]]
    model.optimizer.param_groups[:] = others or model.optimizer.param_groups[:1]
    apart = {"params": [weight for weight in model.parameters() if weight in added], "weight_decay": weight_decay}
    if others:
        model.optimizer.add_param_group(apart)
    else:
        model.optimizer.param_groups[0] |= apart
