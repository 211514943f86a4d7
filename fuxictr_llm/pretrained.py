"""What FuxiCTR's layer for given vectors (`pretrained_emb`) gets wrong, put right around a model's constructor."""

import contextlib
import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbeddingDict
from fuxictr.pytorch.layers.embeddings.pretrained_embedding import PretrainedEmbedding
from torch import nn

from fuxictr_llm.files import read_json


@contextlib.contextmanager
def readable_vocabulary(feature_map: FeatureMap) -> Iterator[None]:
    """FuxiCTR looks at the second column of feature_vocab.json: a single one gets company for the block."""
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
    """Make the vectors of padding zero, as those of FuxiCTR's other embeddings are; they have no gradient.

    FuxiCTR leaves noise there, and its poolings take every vector that is not zero for a real position.
    """
    for module in model.modules():
        if type(module) is PretrainedEmbedding and module.pretrain_embedding.padding_idx is not None:
            module.pretrain_embedding.weight[module.pretrain_embedding.padding_idx] = 0


def warn_of_unused(model: nn.Module, feature_map: FeatureMap) -> None:
    """Name the columns whose given vectors no layer of the model reads: LR's weights are numbers, say."""
    dicts = [module.embedding_layers for module in model.modules() if isinstance(module, FeatureEmbeddingDict)]
    for name, spec in feature_map.features.items():
        layers = [layers[name] for layers in dicts if name in layers]
        if "pretrained_emb" in spec and layers and not any(isinstance(each, PretrainedEmbedding) for each in layers):
            message = "%s reads no pretrained_emb: the given vectors of column %r have no effect"
            logging.warning(message, type(model).__name__, name)
