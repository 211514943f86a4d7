"""Small data, models and add-ons that several tests share."""

import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.torch_utils import seed_everything

from fuxictr_llm.common.files import read_json, write_json
from fuxictr_llm.diagnosis import doctor as probes
from fuxictr_llm.diagnosis.doctor import Idle as Idle
from fuxictr_llm.enhancement.base import Enhancement
from fuxictr_llm.enhancement.model import enhance
from fuxictr_llm.host.batches import rows_of, synthetic_batch
from fuxictr_llm.host.columns import describe_feature_map
from fuxictr_llm.llm.catalog import FieldCatalog, FieldEntry
from fuxictr_llm.model_zoo.LLaCTR.vector_file import write_field_vectors
from fuxictr_llm.registry import find_backbone, find_method
from fuxictr_llm.serving.export import export_run
from fuxictr_llm.serving.load import load_model

CATALOG = FieldCatalog(
    "clicks",
    (
        FieldEntry("color", "color", ("red", "green", "blue", "black", "white", "grey")),
        FieldEntry("city", "city of the shop", ("Rome", "Oslo", "Bern", "Cairo", "Lima", "Malmö")),
    ),
)
BACKBONES = ["DCNv2", "DNN", "DeepFM", "FM", "FinalMLP", "FmFM", "FwFM", "WuKong"]
# Dropout, BatchNorm and regularizers are on: what a method must not disturb.
SETTINGS = {
    "DCNv2": {"parallel_dnn_hidden_units": [12, 6], "batch_norm": True, "net_dropout": 0.2},
    "DNN": {"hidden_units": [12, 6], "batch_norm": True, "net_dropout": 0.2},
    "DeepFM": {"hidden_units": [12, 6], "batch_norm": True, "net_dropout": 0.2},
    "FM": {"regularizer": 1e-4},
    "FinalMLP": {
        "mlp1_hidden_units": [12, 6],
        "mlp2_hidden_units": [8],
        "mlp1_dropout": 0.2,
        "mlp2_batch_norm": True,
        "fs1_context": ["user"],
        "num_heads": 2,
    },
    "FmFM": {"regularizer": 1e-4},
    "FwFM": {"regularizer": 1e-4},
    "LR": {"regularizer": 1e-4},
    "WuKong": {"num_wukong_layers": 2, "lcb_features": 3, "fmb_features": 4, "net_dropout": 0.2},
}


# FuxiCTR's own LogisticRegression layer cannot take columns of type embedding.
WITH_LINEAR_LAYER = ("DeepFM", "FM", "FmFM", "LR")


def small_feature_map(backbone: str, data_dir: str = "unused") -> FeatureMap:
    """Fields of every type that FuxiCTR has (as far as the backbone takes them) and a meta column."""
    feature_map = FeatureMap("small", data_dir)
    categorical = {"type": "categorical", "source": "", "padding_idx": 0}
    feature_map.features = OrderedDict(
        user={**categorical, "vocab_size": 12},
        item={**categorical, "vocab_size": 20},
        price={"type": "numeric", "source": ""},
        tags={
            "type": "sequence",
            "source": "",
            "feature_encoder": "layers.MaskedAveragePooling()",
            "padding_idx": 0,
            "max_len": 3,
            "vocab_size": 7,
        },
        image={"type": "embedding", "source": "", "pretrain_dim": 6},
        group={"type": "meta"},
    )
    if backbone in WITH_LINEAR_LAYER:
        del feature_map.features["image"]
    feature_map.labels = ["click"]
    feature_map.num_fields = feature_map.get_num_fields()
    feature_map.default_emb_dim = 4
    feature_map.set_column_index()
    return feature_map


def params(backbone: str = "DeepFM", **changes) -> dict:
    """Constructor arguments of a small model."""
    regularizers = (
        {} if "regularizer" in SETTINGS[backbone] else {"embedding_regularizer": 1e-4, "net_regularizer": 1e-4}
    )
    return {
        "model_id": f"{backbone}_small",
        "gpu": -1,
        "task": "binary_classification",
        "learning_rate": 0.05,
        "embedding_dim": 4,
        "optimizer": "adam",
        "loss": "binary_crossentropy",
        "metrics": ["AUC", "logloss"],
        "model_root": "unused",
        "verbose": 0,
        **regularizers,
        **SETTINGS[backbone],
        **changes,
    }


def build(cls: type | str, backbone: str = "DeepFM", seed: int = 1, **changes) -> torch.nn.Module:
    """A model of the class on `small_feature_map`, made after seeding everything."""
    seed_everything(seed)
    cls = find_backbone(cls) if isinstance(cls, str) else cls
    return cls(small_feature_map(backbone), **params(backbone, **changes))


def batches(backbone: str = "DeepFM", count: int = 3, rows: int = 16) -> list[dict[str, torch.Tensor]]:
    """Fixed batches; the last one is shorter."""
    whole = synthetic_batch(small_feature_map(backbone), rows=count * rows - rows // 2)
    cuts = [slice(i * rows, (i + 1) * rows) for i in range(count)]
    return [{name: column[cut] for name, column in whole.items()} for cut in cuts]


def train(model: torch.nn.Module, steps: list[dict[str, torch.Tensor]], seed: int = 2) -> list[float]:
    """Train with FuxiCTR's own step on the batches, in order; the losses."""
    seed_everything(seed)
    model._max_gradient_norm = 0.5
    model.train()
    return [model.train_step(batch).item() for batch in steps]


class AllTaps(probes.AllTaps):
    """Uses every tap that the backbone offers, and notes the shapes of what it was shown."""

    def __init__(self, config, anatomy):
        super().__init__(config, anatomy)
        self.shapes = {}

    def inputs(self, inputs):
        self.shapes["inputs"] = rows_of(inputs)

    def embeddings(self, embeddings):
        self.shapes["embeddings"] = tuple(embeddings.shape)

    def representation(self, representation):
        self.shapes["representation"] = tuple(representation.shape)
        return super().representation(representation)

    def logit(self, embeddings, logit):
        self.shapes["logit"] = tuple(logit.shape)
        return super().logit(embeddings, logit)

    def loss(self, trace, y_true):
        self.shapes["loss"] = tuple(y_true.shape)
        return super().loss(trace, y_true)


def enhanced(name: str, method: type[Enhancement] = AllTaps, **changes) -> torch.nn.Module:
    """A small model of the backbone with the method."""
    return build(enhance(find_backbone(name), method), name, **changes)


def predictions(model: torch.nn.Module, steps: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """`[B, 1]` of the batches one after the other, in evaluation mode."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model.forward(batch)["y_pred"] for batch in steps])


def as_arguments(settings: dict) -> list[str]:
    """`--set key=value` for each of the settings."""
    return [arg for key, value in settings.items() for arg in ("--set", f"{key}={value}")]


def edit(path: str | Path, old: str, new: str) -> None:
    """Replace a part of a text file that must be there."""
    text = Path(path).read_text(encoding="utf-8")
    assert old in text
    Path(path).write_text(text.replace(old, new), encoding="utf-8")


def vocabulary(column: str) -> dict[str, int]:
    """FuxiCTR's ids of the values of a column of the built data set `shop`."""
    return read_json("data/shop/feature_vocab.json")[column]


def embedding_of(model: torch.nn.Module, column: str) -> torch.nn.Module:
    """The layer that a model of ours has for a column."""
    return model.embedding_layer.embedding_layer.embedding_layers[column]


def save_run(model, config, folder="runs"):
    """What a run leaves behind, as far as an export reads it."""
    Path(folder).mkdir(exist_ok=True)
    model.save_weights(Path(folder) / "a.model")
    feature_map = describe_feature_map(model.feature_map)
    record = {"model_id": "a", "config": config, "config_sha256": "0", "feature_map": feature_map}
    write_json(Path(folder) / "a.run.json", record)


def trained(name, method=None, keep=None, **changes):
    """A model after a few steps, and its run in runs/a."""
    feature_map = small_feature_map(name)
    for field in list(feature_map.features):
        if keep is not None and field not in keep:
            del feature_map.features[field]
    feature_map.num_fields = feature_map.get_num_fields()
    feature_map.set_column_index()
    if method == "LLaCTR":
        fields = [field for field, spec in feature_map.features.items() if spec["type"] != "meta"]
        vectors = torch.randn(len(fields), 9, generator=torch.Generator().manual_seed(3))
        write_field_vectors("vectors.safetensors", vectors, fields)
        changes = {"field_vectors": "vectors.safetensors", "lambda_fie": 0.7, **changes}
    cls = find_backbone(name)
    torch.manual_seed(0)
    settings = params(name, **changes)
    model = (enhance(cls, find_method(method).model_cls) if method else cls)(feature_map, **settings)
    train(model, steps_of(model, name)[:1])
    save_run(model, {"model": name, "method": method, "dataset_id": "small", **settings})
    Path("vectors.safetensors").unlink(missing_ok=True)  # an export needs no vectors
    return model.eval()


def steps_of(model, name):
    columns = [*model.feature_map.features, *model.feature_map.labels]
    return [{column: batch[column] for column in columns} for batch in batches(name)]


def expected_of(model, batch):
    with torch.no_grad():
        return model.forward({name: batch[name] for name in model.feature_map.features})["y_pred"].view(-1).numpy()


def assert_serves(model, name, to="served"):
    served = load_model(export_run("runs/a", to))
    for batch in steps_of(model, name):
        assert np.abs(served.predict(batch) - expected_of(model, batch)).max() <= 1e-6
    return served


def flip_a_byte(path, keep_time=True):
    """Change one bit in the middle of a file, at the same size and, as a disk does it, the same time of change."""
    path, stat = Path(path), Path(path).stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
