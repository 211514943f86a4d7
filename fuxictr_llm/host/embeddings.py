"""What FuxiCTR's embedding layers leave open: initial weights, vectors given for ids, columns of vectors.

FuxiCTR skips some layers of shared columns when it initializes; it leaves noise at the padding of given vectors; its
linear parts have no weights for columns of vectors.
"""

import contextlib
import functools
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbeddingDict
from fuxictr.pytorch.layers.embeddings.pretrained_embedding import PretrainedEmbedding
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

from fuxictr_llm.common.files import read_json

# Root mean square of initial weights: torch's default has 1, usual initializers far less.
SUSPICIOUS_SCALE = 0.5
FEWEST_WEIGHTS = 16  # with fewer, the scale is left to chance


def initialize_skipped(model: BaseModel) -> None:
    """Initialize the embeddings that FuxiCTR's initializer skips, with the initializer of their layer.

    FuxiCTR initializes no column with `share_embedding`, as if it had no weights of its own. It has some where a layer
    shares nothing (the linear part of FM, DeepFM, LR, ...) or does not embed the column that it would share: they stay
    at N(0, 1), ten thousand times as large as the others, and training does not recover.

    All other weights and later random numbers are as without the call; a second call does nothing.
    """
    done = []
    with torch.random.fork_rng(devices=[]):  # drawn on the CPU, as FuxiCTR's are
        for name, module in model.named_modules():
            if type(module) is not FeatureEmbeddingDict or getattr(module, "skipped_are_initialized", False):
                continue
            for column, layer in _skipped(module):
                _initialize(layer, module)
                done.append(f"{name}.{column}")
            module.skipped_are_initialized = True
    if done:
        logging.info(
            "FuxiCTR leaves a column with share_embedding at N(0,1) where a layer has weights of its own for it; they "
            "start from the layer's initializer instead: %s",
            ", ".join(done),
        )


def initializing_all(cls: type[BaseModel]) -> type[BaseModel]:
    """Class decorator: the constructor ends with `initialize_skipped`."""
    constructor = cls.__init__

    @functools.wraps(constructor)
    def construct(self: BaseModel, *args: object, **params: object) -> None:
        constructor(self, *args, **params)
        initialize_skipped(self)

    cls.__init__ = construct
    return cls


def warn_of_uninitialized(model: BaseModel) -> None:
    """Warn of each embedding that starts at the scale of torch's default; given vectors do not count."""
    given = {id(layer.pretrain_embedding) for layer in model.modules() if isinstance(layer, PretrainedEmbedding)}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and id(module) not in given:
            scale = _scale(module)
            if scale > SUSPICIOUS_SCALE:
                logging.warning(
                    "embedding %r of %s starts at N(0,1) or the like (weights of size %.2g), as torch makes it: "
                    "initialize it in the constructor, or in an init_weights() of its module",
                    name,
                    type(model).__name__,
                    scale,
                )


def _skipped(module: FeatureEmbeddingDict) -> Iterator[tuple[str, nn.Module]]:
    """Column and layer of each layer that FuxiCTR initializes by no column's name."""
    features = module._feature_map.features
    initialized = {
        id(layer) for name, layer in module.embedding_layers.items() if "share_embedding" not in features[name]
    }
    for name, layer in module.embedding_layers.items():
        if id(layer) not in initialized and isinstance(layer, nn.Embedding | PretrainedEmbedding):
            initialized.add(id(layer))
            yield name, layer


@torch.no_grad()
def _initialize(layer: nn.Module, module: FeatureEmbeddingDict) -> None:
    """As FuxiCTR does it: zero at padding and, for ids beside given vectors, from `oov_idx` on."""
    if isinstance(layer, nn.Embedding):
        _draw(layer.weight[0 if layer.padding_idx is None else 1 :], module)
    elif layer.pretrain_usage != "init":
        ids: Any = layer.id_embedding
        ids.weight.zero_()
        _draw(ids.weight[1 : layer.oov_idx], module)


def _draw(weights: Tensor, module: FeatureEmbeddingDict) -> None:
    drawn = torch.empty(weights.shape, dtype=weights.dtype)
    module.embedding_initializer(drawn)
    weights.copy_(drawn)


@torch.no_grad()
def _scale(module: nn.Embedding | nn.EmbeddingBag) -> float:
    """Root mean square of the weights without those of padding, which are zero."""
    count = module.weight.numel() - (0 if module.padding_idx is None else module.embedding_dim)
    return 0.0 if count < FEWEST_WEIGHTS else torch.linalg.vector_norm(module.weight).item() / count**0.5


@contextlib.contextmanager
def readable_vocabulary(feature_map: FeatureMap) -> Iterator[None]:
    """In the block, feature_vocab.json has two columns at least: FuxiCTR looks at the second one."""
    data_dir = feature_map.data_dir
    vocabulary = read_json(Path(data_dir) / "feature_vocab.json") or {}
    given = any("pretrained_emb" in spec for spec in feature_map.features.values())
    if not given or len(vocabulary) != 1:
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "feature_vocab.json").write_text(json.dumps({**vocabulary, "": {}}), encoding="utf-8")
        for spec in feature_map.features.values():
            if "pretrained_emb" in spec:
                spec["pretrained_emb"] = str(Path(data_dir, spec["pretrained_emb"]).absolute())
        feature_map.data_dir = folder
        try:
            yield
        finally:
            feature_map.data_dir = data_dir


@torch.no_grad()
def zero_padding(model: nn.Module) -> None:
    """Set the padding of given vectors to zero, as in FuxiCTR's other embeddings; it has no gradient.

    FuxiCTR leaves noise there, and its poolings take every vector that is not zero for an item.
    """
    for module in model.modules():
        if type(module) is PretrainedEmbedding:
            given: Any = module.pretrain_embedding
            if given.padding_idx is not None:
                given.weight[given.padding_idx] = 0


def warn_of_unused(model: nn.Module, feature_map: FeatureMap) -> None:
    """Warn of columns whose given vectors no layer of the model reads, as in LR, whose weights are numbers."""
    dicts = [module.embedding_layers for module in model.modules() if isinstance(module, FeatureEmbeddingDict)]
    for name, spec in feature_map.features.items():
        layers = [layers[name] for layers in dicts if name in layers]
        if "pretrained_emb" in spec and layers and not any(isinstance(layer, PretrainedEmbedding) for layer in layers):
            message = "%s reads no pretrained_emb: the given vectors of column %r have no effect"
            logging.warning(message, type(model).__name__, name)


UNEQUAL_WIDTHS = "stack expects each tensor to be equal size"


def vectors_refused(model: str, feature_map: Any, error: Exception) -> str | None:
    """The message for a model that fails on a column of vectors; None for an error of another cause.

    FuxiCTR projects vectors to the width of embeddings, but not to the single number that linear parts add up.
    """
    names = [name for name, spec in feature_map.features.items() if spec["type"] == "embedding"]
    if not names or UNEQUAL_WIDTHS not in str(error):
        return None
    return (
        f"{model} cannot take the vectors of column {names[0]!r} (type: embedding): its linear part has no weights for "
        "them; take a model without one, as DNN or DCNv2, or set active: false for the column"
    )
