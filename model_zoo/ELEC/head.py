"""The text head: what the text of a row alone says about its click (ELEC's adaptation, arXiv 2509.07594).

Shape symbols: `B` rows, `U` units of text a row, `n` distinct texts of a unit in a batch, `D_llm` width of the language
model, `D_h` width of h, `T` tasks.
"""

from collections.abc import Iterable
from typing import Any, cast

from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel, MultiTaskModel
from torch import Tensor, nn
from torch.nn import functional

from fuxictr_llm.host.columns import with_features, with_more_features

# The column that holds a row's vector; no data set has one of that name.
VECTOR = "llm_vector"


class _HeadNetwork(BaseModel):
    """The network of both heads; behind it stands FuxiCTR's class of models of one label or of several.

    `h = MLP(LayerNorm(s))`, `p = sigmoid(w h + b)`, in FuxiCTR's form, so that FuxiCTR's fit trains it.

    Hidden states have a few dimensions that outweigh all others, so each unit's vector is normalized first. A batch
    has each text of its rows once, with the columns of `text_columns`: normalizing and the first layer are asked once
    a text, not once a row.

    Args:
        feature_map: of `with_texts`.
        units: U.
        h_hidden: width of the hidden layer.
        h_dim: D_h.
        h_dropout: dropout on the hidden layer.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        units: int,
        h_hidden: int,
        h_dim: int,
        h_dropout: float = 0.0,
        learning_rate: float = 1e-3,
        embedding_regularizer: Any = None,
        net_regularizer: Any = None,
        **kwargs: Any,
    ):
        super().__init__(feature_map, **kwargs)
        width = feature_map.features[text_columns(0)[0]]["pretrain_dim"]
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(units))
        self.transformation = nn.Sequential(
            nn.Linear(units * width, h_hidden), nn.ReLU(), nn.Dropout(h_dropout), nn.Linear(h_hidden, h_dim)
        )
        self.prediction = nn.Linear(h_dim, getattr(self, "num_tasks", 1))
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def h(self, vectors: Tensor) -> Tensor:
        """`[B, U * D_llm] -> [B, D_h]`."""
        parts = vectors.chunk(len(self.norms), dim=-1)
        return self._h(self._projected(unit, part) for unit, part in enumerate(parts))

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        columns, parts = self.get_inputs(inputs), []
        for unit in range(len(self.norms)):
            vectors, places = (columns[name] for name in text_columns(unit))
            parts.append(functional.embedding(places, self._projected(unit, vectors)))
        return self._predictions(self.prediction(self._h(parts)))

    def _projected(self, unit: int, vectors: Tensor) -> Tensor:
        """What a unit's vectors, `[n, D_llm]`, add to the hidden layer: `W LayerNorm(s)`, `[n, h_hidden]`."""
        norm, width = cast(nn.LayerNorm, self.norms[unit]), vectors.shape[-1]
        weight = self._first.weight[:, unit * width : (unit + 1) * width]
        normed = functional.layer_norm(vectors, norm.normalized_shape, eps=norm.eps)
        # Scale and shift are taken into W, which is smaller: that spares a gradient as large as all vectors.
        return functional.linear(normed, weight * norm.weight, weight @ norm.bias)

    @property
    def _first(self) -> nn.Linear:
        return cast(nn.Linear, self.transformation[0])

    def _h(self, parts: Iterable[Tensor]) -> Tensor:
        """The units' parts of the hidden layer, U times `[B, h_hidden]`, -> `[B, D_h]`."""
        return self.transformation[1:](sum(parts) + self._first.bias)


class TextHead(_HeadNetwork):
    """A text head for one label."""

    def _predictions(self, logit: Tensor) -> dict[str, Tensor]:
        return {"y_pred": self.output_activation(logit)}


class MultiTaskTextHead(_HeadNetwork, MultiTaskModel):
    """A text head for T labels, which share h."""

    def _predictions(self, logits: Tensor) -> dict[str, Tensor]:
        tasks = zip(self.feature_map.labels, self.output_activation, logits.split(1, dim=-1), strict=True)
        return {f"{label}_pred": activation(logit) for label, activation, logit in tasks}


def text_columns(unit: int) -> tuple[str, str]:
    """Columns of a unit in a batch: its distinct texts' vectors, `[n, D_llm]`, and which of them a row has, `[B]`."""
    return f"{VECTOR}s_{unit}", f"llm_text_{unit}"


def with_texts(feature_map: FeatureMap, units: int, width: int) -> FeatureMap:
    """A copy of the feature map with U times `text_columns`, D_llm wide, and no other columns that a model reads."""
    added = {}
    for vectors, places in map(text_columns, range(units)):
        added[vectors] = {"source": "", "type": "embedding", "pretrain_dim": width}
        added[places] = {"source": "", "type": "categorical"}
    metas = {name: spec for name, spec in feature_map.features.items() if spec["type"] == "meta"}
    if feature_map.group_id in feature_map.features:  # metrics by group ask for it, whatever its type
        metas[feature_map.group_id] = {"source": "", "type": "meta"}
    return with_features(feature_map, metas | added)


def with_vector(feature_map: FeatureMap, width: int) -> FeatureMap:
    """A copy of the feature map with the column `VECTOR`, which a model's layers do not read."""
    return with_more_features(feature_map, {VECTOR: {"source": "", "type": "meta", "pretrain_dim": width}}, "ELEC")
