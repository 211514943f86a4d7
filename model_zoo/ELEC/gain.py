"""The gain network: a backbone that also sees a language model's vector of the row (ELEC, arXiv 2509.07594).

Shape symbols: `B` rows, `R` width of the representation, `D_h` width of the vector.
"""

import logging
from typing import Any, Literal

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbeddingDict
from fuxictr.pytorch.models import BaseModel
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from fuxictr_llm.common.checks import STRICT
from fuxictr_llm.enhancement.anatomy import Anatomy
from fuxictr_llm.enhancement.base import Enhancement
from fuxictr_llm.enhancement.model import enhance
from fuxictr_llm.host.batches import columns_of, moved_to

from .head import VECTOR, with_vector


@dataclass(config=STRICT, kw_only=True)
class GainConfig:
    """Where the vector goes, and its width D_h."""

    inject: Literal["top", "logit"] = "top"
    h_dim: int


class Gain(Enhancement):
    """`top`: `r_g = relu(W [r ; h] + b)` in front of the logit layer; `logit`: `w h + b` is added to the logit.

    W starts as the identity on r and zero on h: where r comes out of a ReLU, a gain network starts from what its
    backbone does; elsewhere (DCNv2's cross layers, FwFM) r loses its negative half.

    Args:
        config: where the vector goes.
        anatomy: the backbone's; one without a representation takes `logit` for `top`.
    """

    method_name = "Gain"
    config_cls = GainConfig
    reads_embeddings = False

    def __init__(self, config: GainConfig, anatomy: Anatomy):
        super().__init__(config, anatomy)
        width = sum(anatomy.widths)
        self.inject = config.inject if anatomy.widths else "logit"
        self.mix: nn.Linear | None = None
        self.term: nn.Linear | None = None
        if self.inject == "top":
            self.mix = nn.Linear(width + config.h_dim, width)
            nn.init.eye_(self.mix.weight)
            nn.init.zeros_(self.mix.bias)
        else:
            self.term = nn.Linear(config.h_dim, len(anatomy.tasks))
        self._vectors: Tensor | None = None  # of the batch in the forward pass

    def active_taps(self) -> frozenset[str]:
        return frozenset({"inputs", "representation" if self.inject == "top" else "logit"})

    def inputs(self, inputs: Any) -> None:
        self._vectors = columns_of(inputs)[VECTOR]

    def representation(self, representation: Tensor) -> Tensor:
        assert self.mix is not None  # or this tap is not active
        return self.mix(torch.cat([representation, self._take(representation)], dim=-1)).relu()

    def logit(self, embeddings: Any, logit: Tensor) -> Tensor:
        assert self.term is not None  # or this tap is not active
        return self.term(self._take(logit))

    def _take(self, like: Tensor) -> Tensor:
        """The vectors of the batch in the forward pass, once."""
        vectors, self._vectors = self._vectors, None
        assert vectors is not None  # `inputs` is called first
        return moved_to(like.device, vectors).to(like.dtype)


def gain_class(backbone: type[BaseModel], inject: str) -> Any:
    """What builds a gain network: called with the plain feature map and params, with `h_dim` among them."""
    return _InputGain(backbone) if inject == "input" else _TappedGain(backbone)


class _TappedGain:
    def __init__(self, backbone: type[BaseModel]):
        self.backbone_cls, self.cls = backbone, enhance(backbone, Gain)
        self.__name__ = self.cls.__name__

    def __call__(self, feature_map: FeatureMap, **params: Any) -> BaseModel:
        model = self.cls(with_vector(feature_map, params["h_dim"], "meta"), **params)
        if model.enhancement.inject != params["inject"]:
            logging.warning(
                "inject: %s: %s has no representation in front of its logit, so the vector goes into the logit",
                params["inject"],
                model.backbone_cls.__name__,
            )
        return model


class _InputGain:
    def __init__(self, backbone: type[BaseModel]):
        self.backbone_cls = backbone
        self.__name__ = f"{backbone.__name__} with the column {VECTOR}"

    def __call__(self, feature_map: FeatureMap, **params: Any) -> BaseModel:
        model = self.backbone_cls(with_vector(feature_map, params["h_dim"], "embedding"), **params)
        _give_projections(model, params["h_dim"])
        model.compile(params["optimizer"], params["loss"], params["learning_rate"])
        return model


def _give_projections(model: BaseModel, width: int) -> None:
    """FuxiCTR's linear layers have no weights for a column of vectors, and fail where there is one."""
    for module in model.modules():
        has_column = type(module) is FeatureEmbeddingDict and VECTOR in module.embedding_layers
        if has_column and VECTOR not in module.feature_encoders:
            projection = nn.Linear(width, 1, bias=False).to(model.device)
            nn.init.zeros_(projection.weight)
            module.feature_encoders[VECTOR] = projection
