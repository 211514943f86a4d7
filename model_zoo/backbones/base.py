"""What the constructors of all backbones share: the arguments that every model has, its embeddings, its start."""

from typing import Any, ClassVar

from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbedding
from fuxictr.pytorch.models import BaseModel, MultiTaskModel
from torch import nn

Activations = str | list[str]  # one for all layers, or one for each
Rates = float | list[float]  # of dropout, likewise
Regularizer = float | str | None


class Backbone(BaseModel):
    """A model of one label.

    A subclass declares its own hyper-parameters, passes all other arguments on as `**shared`, makes its layers, and
    ends its constructor with `start`. Weights are drawn in the order of these calls, which is FuxiCTR's.

    Args:
        feature_map: the columns of the data set.
        model_id: names the files of weights; None for the name of the class.
        gpu: index of the GPU, -1 for the CPU.
        learning_rate: of the optimizer.
        embedding_dim: D, the width of a field's embedding.
        embedding_regularizer: FuxiCTR's regularizer of the embeddings.
        net_regularizer: FuxiCTR's regularizer of all other weights.
        kwargs: arguments of FuxiCTR's base model: `optimizer`, `loss`, `metrics`, `model_root` and `verbose` at least.

    Attributes:
        embedding_layer: of type `embedding_cls`; it is made before the layers of the subclass.
    """

    embedding_layer: FeatureEmbedding
    # None for a model that makes its embeddings itself.
    embedding_cls: ClassVar[type[nn.Module] | None] = FeatureEmbedding

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        model_id: str | None = None,
        gpu: int = -1,
        learning_rate: float = 1e-3,
        embedding_dim: int = 10,
        embedding_regularizer: Regularizer = None,
        net_regularizer: Regularizer = None,
        **kwargs: Any,
    ):
        super().__init__(
            feature_map,
            model_id=model_id or type(self).__name__,
            gpu=gpu,
            embedding_regularizer=embedding_regularizer,
            net_regularizer=net_regularizer,
            **kwargs,
        )
        self.embedding_dim = embedding_dim
        self._compiled_with = (kwargs["optimizer"], kwargs["loss"], learning_rate)
        if self.embedding_cls is not None:
            self.embedding_layer = self.embedding_cls(feature_map, embedding_dim)

    def start(self, reset: bool = True) -> None:
        """Make the optimizer, draw the initial weights (unless `reset` is False) and move to the device."""
        self.compile(*self._compiled_with)
        if reset:
            self.reset_parameters()
        self.model_to_device()


class MultiTaskBackbone(Backbone, MultiTaskModel):
    """A model of several labels.

    Args:
        feature_map: the columns of the data set.
        task: one for each label, or one for all.
        num_tasks: T, the number of labels.
        shared: the arguments of every backbone.
    """

    def __init__(
        self,
        feature_map: FeatureMap,
        *,
        task: str | list[str] = ["binary_classification"],
        num_tasks: int = 1,
        **shared: Any,
    ):
        super().__init__(feature_map, task=task, num_tasks=num_tasks, **shared)
