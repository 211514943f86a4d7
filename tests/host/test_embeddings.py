"""Embeddings that FuxiCTR's initializer skips: every one starts as its neighbours do, in every arm alike."""

import copy
import json
import logging
from functools import partial

import numpy as np
import pytest
import torch
from fuxictr.pytorch.layers import FeatureEmbedding, FeatureEmbeddingDict, LogisticRegression
from fuxictr.pytorch.models import BaseModel
from torch import nn

from fuxictr_llm import model_zoo
from fuxictr_llm.diagnosis.doctor import Idle
from fuxictr_llm.enhancement.model import enhance
from fuxictr_llm.host.embeddings import SUSPICIOUS_SCALE, initialize_skipped
from fuxictr_llm.registry import find_backbone
from fuxictr_llm.training import build as training
from support import SETTINGS, batches, params, predictions, small_feature_map, train

SHARED = {"tags": "item"}


def feature_map_with(shared=SHARED):
    feature_map = small_feature_map("LR")
    for column, other in shared.items():
        feature_map.features[column] |= {"share_embedding": other, "vocab_size": 20}
    return feature_map


def settings(backbone, **changes):
    return {**params(backbone if backbone in SETTINGS else "FM"), "seed": 3, "num_threads": 1, **changes}


def built(cls, backbone, feature_map=None, **changes):
    return training.build(cls, feature_map or feature_map_with(), settings(backbone, **changes))


def scales(model):
    """Root mean square of every embedding, by its name."""
    return {
        name: module.weight[1:].square().mean().sqrt().item()
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    }


@pytest.mark.parametrize(
    "backbone", ["LR", "FM", "DeepFM", "WideDeep", "FmFM", "FwFM", "HOFM", "FFM", "AFM", "xDeepFM"]
)
def test_no_embedding_starts_at_the_scale_of_one_without_initializer(backbone, caplog):
    caplog.set_level(logging.INFO)
    model = built(find_backbone(backbone), backbone)
    assert min(scales(model).values()) > 0 and max(scales(model).values()) < 3e-4
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            assert module.weight[0].eq(0).all(), name
    has_linear_part = any(isinstance(module, LogisticRegression) for module in model.modules())
    messages = [record.getMessage() for record in caplog.records if "share_embedding" in record.getMessage()]
    assert len(messages) == has_linear_part
    assert not messages or messages[0].endswith("lr_layer.embedding_layer.embedding_layer.tags")


@pytest.mark.parametrize("backbone", ["LR", "DeepFM", "HOFM"])
@pytest.mark.parametrize("shared", [SHARED, {}])
def test_all_arms_start_and_train_alike_and_only_skipped_weights_differ_from_fuxictrs(backbone, shared):
    cls = find_backbone(backbone)
    plain = built(cls, backbone, feature_map_with(shared))
    arm = built(enhance(cls, Idle), backbone, feature_map_with(shared))
    torch.manual_seed(3)
    outside = enhance(cls, Idle)(feature_map_with(shared), **settings(backbone))
    torch.manual_seed(3)
    outside_plain = getattr(model_zoo, backbone)(feature_map_with(shared), **settings(backbone))
    torch.manual_seed(3)
    fuxictrs = cls.__new__(cls)
    cls.__init__.__wrapped__(fuxictrs, feature_map_with(shared), **settings(backbone))
    rng = torch.get_rng_state()
    torch.manual_seed(3)
    cls(feature_map_with(shared), **settings(backbone))
    assert torch.equal(torch.get_rng_state(), rng)
    for name, value in plain.state_dict().items():
        for other in (arm, outside, outside_plain):
            assert torch.equal(value, other.state_dict()[name]), name
        skipped = bool(shared) and "lr_layer" in name and "tags" in name
        assert torch.equal(value, fuxictrs.state_dict()[name]) != skipped, name
    steps = batches("LR")
    assert train(plain, steps) == train(arm, steps)
    assert torch.equal(predictions(plain, steps), predictions(arm, steps))


class Other(BaseModel):
    """A class of anyone's: an initializer of its own, a layer without the column that is shared, one never initialized."""

    def __init__(self, feature_map, **kwargs):
        super().__init__(feature_map, **kwargs)
        make = partial(FeatureEmbedding, feature_map, 8, "partial(nn.init.uniform_, a=0.2, b=0.3)")
        self.embedding_layer = make()
        self.context = make(required_feature_columns=["tags", "user"])
        self.without = FeatureEmbeddingDict(feature_map, 8, not_required_feature_columns=["item"], use_sharing=False)
        self.position = nn.Embedding(50, 8)
        self.fc = nn.Linear(32, 1)
        self.compile(kwargs["optimizer"], kwargs["loss"], 1e-3)
        self.reset_parameters()

    def forward(self, inputs):
        return {"y_pred": self.fc(self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)).sigmoid()}


def test_a_class_of_anyones_draws_from_its_own_initializer_and_is_told_of_what_it_never_initializes(caplog):
    caplog.set_level(logging.INFO)
    model = built(Other, "DNN")
    dicts = {name: each.embedding_layers for name, each in model.named_modules() if hasattr(each, "embedding_layers")}
    shared = dicts["context.embedding_layer"]["tags"].weight
    assert shared[0].eq(0).all()
    assert shared[1:].min() >= 0.2
    assert shared[1:].max() <= 0.3
    assert shared[1:].std() > 0.02
    assert dicts["without"]["tags"].weight[1:].std() < 3e-4
    assert dicts["embedding_layer.embedding_layer"]["tags"] is dicts["embedding_layer.embedding_layer"]["item"]
    messages = [record.getMessage() for record in caplog.records]
    told = [each for each in messages if "share_embedding" in each]
    assert len(told) == 1 and told[0].endswith("context.embedding_layer.tags, without.tags")
    warned = [each for each in messages if "starts at N(0,1)" in each]
    assert len(warned) == 1 and "embedding 'position' of Other" in warned[0]
    copied = copy.deepcopy(model)
    initialize_skipped(copied)
    assert all(torch.equal(value, copied.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("shared", [{"tags": None}, {"tags": "gone"}, {"user": "item", "tags": "user"}])
def test_columns_that_share_with_nothing_that_is_there_and_chains_of_shared_ones(shared):
    feature_map = feature_map_with(shared)
    model = built(find_backbone("DeepFM"), "DeepFM", feature_map)
    assert max(scales(model).values()) < SUSPICIOUS_SCALE / 1000


@pytest.mark.parametrize("usage", ["sum", "concat"])
def test_the_weights_beside_given_vectors(tmp_path, usage):
    feature_map = feature_map_with({"tags": "gone"})
    (tmp_path / "feature_vocab.json").write_text(json.dumps({"tags": {"a": 1, "b": 2, "__OOV__": 4}, "item": {}}))
    np.savez(tmp_path / "tags.npz", key=np.array(["a", "b"]), value=np.ones((2, 4)))
    feature_map.data_dir = str(tmp_path)
    given = {"pretrained_emb": "tags.npz", "pretrain_dim": 4, "pretrain_usage": usage, "freeze_emb": True, "oov_idx": 4}
    feature_map.features["tags"] |= given
    model = built(find_backbone("DNN"), "DNN", feature_map)
    weights = model.embedding_layer.embedding_layer.embedding_layers["tags"].id_embedding.weight
    assert weights[[0, *range(4, 20)]].eq(0).all() and 0 < weights[1:4].abs().max() < 1e-3
