"""What FuxiCTR's embedding layers leave open: initial weights, vectors given for ids, columns of vectors.

FuxiCTR skips some layers of shared columns when it initializes; it leaves noise at the padding of given vectors; its
linear parts have no weights for columns of vectors: all three are mended. What is wrong with a file of given vectors
(`pretrained_emb`) it says deep inside: here an error names the column, the file and the key.
"""

import contextlib
import functools
import json
import logging
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import polars as pl
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import FeatureEmbeddingDict
from fuxictr.pytorch.layers.embeddings.pretrained_embedding import PretrainedEmbedding
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, nn

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.files import read_json
from fuxictr_llm.host.columns import feature_columns
from fuxictr_llm.host.preprocess import load_pretrain_emb

# Root mean square of initial weights: torch's default has 1, usual initializers far less.
SUSPICIOUS_SCALE = 0.5
FEWEST_WEIGHTS = 16  # with fewer, the scale is left to chance
VECTOR_SCALE = 1e-4  # of new weights for vectors: FuxiCTR's, of fresh embeddings
ENDINGS = ("h5", "npz", "parquet")
READ_ERRORS = (OSError, KeyError, ValueError, TypeError, EOFError, BadZipFile, pl.exceptions.PolarsError)
DTYPES = {"int": int, "float": float, "str": str}


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


def complete(model: BaseModel) -> None:
    """`initialize_skipped` and `give_projections`; a second call does nothing."""
    initialize_skipped(model)
    give_projections(model)


def completing(cls: type[BaseModel]) -> type[BaseModel]:
    """Class decorator: the constructor ends with `complete`."""
    constructor = cls.__init__

    @functools.wraps(constructor)
    def construct(self: BaseModel, *args: object, **params: object) -> None:
        constructor(self, *args, **params)
        complete(self)

    cls.__init__ = construct
    return cls


def give_projections(model: BaseModel) -> None:
    """Give linear parts weights for columns of vectors (type: embedding).

    FuxiCTR projects vectors to the width of embeddings, but not to the one number a field that a linear part adds up:
    LR, FM, DeepFM and others fail on such a column. All other weights and later random numbers are as without the call.
    """
    given: list[nn.Parameter] = []
    with torch.random.fork_rng(devices=[]):  # drawn on the CPU, as FuxiCTR's are
        for module in model.modules():
            if type(module) is not FeatureEmbeddingDict:
                continue
            for name, spec in module._feature_map.features.items():
                bare = name in module.embedding_layers and name not in module.feature_encoders
                if bare and spec["type"] == "embedding" and (spec.get("pretrain_dim") or 1) > 1:
                    projection = nn.Linear(spec["pretrain_dim"], 1, bias=False)
                    nn.init.normal_(projection.weight, std=VECTOR_SCALE)
                    module.feature_encoders[name] = projection.to(model.device)
                    given += projection.parameters()
    if given and hasattr(model, "optimizer"):
        model.optimizer.param_groups[0]["params"] += given


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


def read_vectors(path: Path, column: str) -> tuple[np.ndarray, np.ndarray]:
    """The keys `[N]`, of the type that they have in the file, and the vectors `[N, D]`.

    Raises:
        UserError: the file is missing, FuxiCTR cannot read it, or it is not one finite vector a key.
    """
    where = f"pretrained_emb {str(path)!r} of column {column!r}"
    if not path.is_file():
        raise UserError(f"{where} is missing")
    if not path.name.endswith(ENDINGS):
        raise UserError(f"{where} must end in {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    try:
        keys, vectors = load_pretrain_emb(str(path), keys=["key", "value"])
        keys, vectors = np.asarray(keys), np.asarray(vectors)
    except READ_ERRORS as error:
        raise UserError(
            f"{where} cannot be read ({reason_of(error)}); it needs 'key', an array of text or integers, and 'value', "
            "a matrix with a row for each of them"
        ) from error
    shapes = f"'key' has shape {keys.shape}, 'value' {vectors.shape} of {vectors.dtype}"
    if keys.ndim != 1 or vectors.ndim != 2 or len(keys) != len(vectors) or vectors.dtype.kind not in "fiu":
        raise UserError(f"{where} is not one vector a key: {shapes}")
    if not vectors.size:
        raise UserError(f"{where} is empty: {shapes}")
    with np.errstate(over="ignore"):
        finite = np.isfinite(vectors.astype(np.float32, copy=False)).all(axis=1)
    if not finite.all():
        key = keys_as_text(keys[~finite][:1], where).item()
        raise UserError(
            f"{where} holds NaN or infinity (as float32) in {(~finite).sum():,} of {len(keys):,} vectors, first in "
            f"that of key {key!r}; mend it, or leave these keys out"
        )
    return keys, vectors


def keys_as_text(keys: np.ndarray, where: str) -> np.ndarray:
    """Keys as FuxiCTR compares them with values: numpy's text of them.

    Raises:
        UserError: they are bytes that are not ASCII, as h5 files have them.
    """
    try:
        return keys.astype(str)
    except UnicodeDecodeError as error:
        raw = bytes(error.object).decode(errors="replace")
        raise UserError(f"{where} has the key {raw!r}: FuxiCTR reads ASCII alone from h5; save it as npz") from error


def check_width(where: str, vectors: np.ndarray, spec: Mapping[str, Any], embedding_dim: Any) -> None:
    """
    Raises:
        UserError: FuxiCTR would refuse vectors of this width for a column.
    """
    width = spec.get("pretrain_dim") or spec.get("embedding_dim") or embedding_dim
    if isinstance(width, int) and width != vectors.shape[1]:
        key = "pretrain_dim" if spec.get("pretrain_dim") else "embedding_dim, which counts without pretrain_dim,"
        raise UserError(
            f"{where} has vectors of {vectors.shape[1]} numbers, and {key} is {width}; "
            f"set pretrain_dim: {vectors.shape[1]}"
        )


def check_declared_vectors(params: Mapping[str, Any]) -> None:
    """Check the files that active columns of a data set name, before it is built with them.

    Raises:
        UserError: FuxiCTR cannot build with one.
    """
    for col in feature_columns(params):
        if not (col.get("active", True) and col.get("pretrained_emb")):
            continue
        where = f"pretrained_emb {col['pretrained_emb']!r} of column {col['name']!r}"
        if col["type"] not in ("categorical", "sequence"):
            raise UserError(f"{where}: a column of type {col['type']} has no values that vectors could be of")
        keys, vectors = read_vectors(Path(col["pretrained_emb"]), col["name"])
        check_width(where, vectors, col, params.get("embedding_dim"))
        _check_type(keys_as_text(keys, where) if keys.dtype.kind in "SO" else keys, col["dtype"], where)


def with_used_vectors(columns: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`feature_cols` in which inactive columns name no file: FuxiCTR looks for their vocabularies too, and fails."""
    return [
        col if col.get("active", True) else {key: value for key, value in col.items() if key != "pretrained_emb"}
        for col in columns
    ]


def _check_type(keys: np.ndarray, dtype: str, where: str) -> None:
    """FuxiCTR casts all keys to the column's type, and numpy makes an integer of anything that is a number."""
    broken = None
    if dtype == "int" and keys.dtype.kind == "f":
        broken = next(iter(keys[~(np.isfinite(keys) & (keys == np.round(keys)))]), None)
    for key in () if broken is not None or _casts(keys, dtype) else keys:
        if not _casts(np.asarray([key]), dtype):
            broken = key
            break
    if broken is not None:
        raise UserError(f"{where} has the key {getattr(broken, 'item', lambda: broken)()!r}, and the column is {dtype}")


def _casts(keys: np.ndarray, dtype: str) -> bool:
    try:
        keys.astype(DTYPES[dtype])
    except (ValueError, OverflowError, TypeError):
        return False
    return True
