from typing import Any, Literal

from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import MLP_Block
from torch import Tensor, nn

from .base import Activations, MultiTaskBackbone, Rates


class ShareBottom(MultiTaskBackbone):
    """An MLP shared by all tasks, and an MLP for each task on top of it.

    Caruana, "Multitask Learning", Machine Learning 28, 1997; as in equation 1 of Ma et al., KDD 2018 (see MMoE).
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        loss_weight: Literal["EQ"] = "EQ",
        bottom_hidden_units: list[int] = [64, 64, 64],
        tower_hidden_units: list[int] = [64],
        hidden_activations: Activations = "ReLU",
        net_dropout: Rates = 0,
        batch_norm: bool = False,
        **shared: Any,
    ):
        super().__init__(feature_map, loss_weight=loss_weight, **shared)
        mlp = {"hidden_activations": hidden_activations, "dropout_rates": net_dropout, "batch_norm": batch_norm}
        self.bottom = MLP_Block(self.embedding_dim * feature_map.num_fields, bottom_hidden_units, **mlp)
        self.tower = nn.ModuleList(
            MLP_Block(bottom_hidden_units[-1], tower_hidden_units, output_dim=1, **mlp) for _ in range(self.num_tasks)
        )
        self.start()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        shared = self.bottom(self.embedding_layer(X, flatten_emb=True))
        tasks = zip(self.feature_map.labels, self.tower, self.output_activation, strict=True)
        return {f"{label}_pred": activation(tower(shared)) for label, tower, activation in tasks}
