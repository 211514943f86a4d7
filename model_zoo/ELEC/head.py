"""The text head: what the text of a row alone says about its click (ELEC's adaptation, arXiv 2509.07594).

Shape symbols: `B` rows, `U` units of text a row, `D_llm` width of the language model, `D_h` width of h.
"""

from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

# The column that holds a row's vector; no data set has one of that name.
VECTOR = "llm_vector"


class TextHead(BaseModel):
    """`h = MLP(LayerNorm(s))`, `p = sigmoid(w h + b)`, in FuxiCTR's form, so that FuxiCTR's fit trains it.

    Hidden states have a few dimensions that outweigh all others, so each unit's vector is normalized first.

    Args:
        feature_map: has the column `VECTOR`, `[B, U * D_llm]`.
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
        width = feature_map.features[VECTOR]["pretrain_dim"]
        self.norms = nn.ModuleList(nn.LayerNorm(width // units) for _ in range(units))
        self.transformation = nn.Sequential(
            nn.Linear(width, h_hidden), nn.ReLU(), nn.Dropout(h_dropout), nn.Linear(h_hidden, h_dim)
        )
        self.prediction = nn.Linear(h_dim, 1)
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def h(self, vectors: Tensor) -> Tensor:
        """`[B, U * D_llm] -> [B, D_h]`."""
        parts = vectors.chunk(len(self.norms), dim=-1)
        normed = torch.cat([norm(part) for norm, part in zip(self.norms, parts, strict=True)], dim=-1)
        return self.transformation(normed)

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        h = self.h(self.get_inputs(inputs)[VECTOR])
        return {"y_pred": self.output_activation(self.prediction(h))}


def with_vector(feature_map: FeatureMap, width: int, kind: str, alone: bool = False) -> FeatureMap:
    """A copy of the feature map with the column `VECTOR`.

    Args:
        width: of the vectors.
        kind: FuxiCTR's type of the column: `embedding`, which a model reads, or `meta`, which it does not.
        alone: without all other columns that a model reads.
    """
    copy = FeatureMap(feature_map.dataset_id, feature_map.data_dir)
    kept = {name: spec for name, spec in feature_map.features.items() if not alone or spec["type"] == "meta"}
    copy.features.update(kept)
    copy.features[VECTOR] = {"source": "", "type": kind, "pretrain_dim": width}
    copy.labels, copy.group_id = feature_map.labels, feature_map.group_id
    copy.default_emb_dim = feature_map.default_emb_dim
    copy.total_features = feature_map.total_features
    copy.num_fields = copy.get_num_fields()
    copy.set_column_index()
    return copy
