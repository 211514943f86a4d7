from typing import Any, Literal

from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import MultiTaskModel
from torch import Tensor, nn


class ShareBottom(MultiTaskModel):
    """An MLP that all tasks share, and an MLP for each task on top of it.

    Caruana, "Multitask Learning", Machine Learning 28, 1997; as in equation 1 of Ma et al., KDD 2018 (see MMoE).
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        model_id: str = "SharedBottom",
        gpu: int = -1,
        task: str | list[str] = ["binary_classification"],
        num_tasks: int = 1,
        loss_weight: Literal["EQ"] = "EQ",
        learning_rate: float = 1e-3,
        embedding_dim: int = 10,
        bottom_hidden_units: list[int] = [64, 64, 64],
        tower_hidden_units: list[int] = [64],
        hidden_activations: str | list[str] = "ReLU",
        net_dropout: float | list[float] = 0,
        batch_norm: bool = False,
        embedding_regularizer: float | str | None = None,
        net_regularizer: float | str | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            feature_map,
            task=task,
            loss_weight=loss_weight,
            num_tasks=num_tasks,
            model_id=model_id,
            gpu=gpu,
            embedding_regularizer=embedding_regularizer,
            net_regularizer=net_regularizer,
            **kwargs,
        )
        mlp = {"hidden_activations": hidden_activations, "dropout_rates": net_dropout, "batch_norm": batch_norm}
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.bottom = MLP_Block(embedding_dim * feature_map.num_fields, bottom_hidden_units, **mlp)
        self.tower = nn.ModuleList(
            MLP_Block(bottom_hidden_units[-1], tower_hidden_units, output_dim=1, **mlp) for _ in range(num_tasks)
        )
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        X = self.get_inputs(inputs)
        shared = self.bottom(self.embedding_layer(X, flatten_emb=True))
        tasks = zip(self.feature_map.labels, self.tower, self.output_activation, strict=True)
        return {f"{label}_pred": activation(tower(shared)) for label, tower, activation in tasks}
