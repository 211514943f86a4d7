"""Loads an exported model and predicts with it, from ids or raw rows; needs neither a language library nor a data set.

The folder may be a stranger's: no pickle is read, and little more memory is allocated than the files hold.
Shape symbols: `N` rows, `L` length of a sequence, `T` tasks.
"""

import math
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fuxictr_llm.common.checks import check_gpu
from fuxictr_llm.common.errors import UserError, nearest, reason_of, unknown
from fuxictr_llm.common.files import digest_of_file
from fuxictr_llm.config.origins import find_exported
from fuxictr_llm.enhancement.folded import FOLDED
from fuxictr_llm.enhancement.model import enhance, own_columns
from fuxictr_llm.host.batches import labels_of, predictions_of, synthetic_batch, task_settings
from fuxictr_llm.host.columns import as_tuples, make_feature_map, without_pretrained_files
from fuxictr_llm.host.embeddings import complete
from fuxictr_llm.host.evaluated import INITIALIZER, check_columns
from fuxictr_llm.serving.config import AGAIN, CONFIG, read_config
from fuxictr_llm.serving.preprocessing import check_files, raw_rows
from fuxictr_llm.serving.tables import JoinedTables

if TYPE_CHECKING:
    from fuxictr_llm.serving.raw import RawRows

# Besides its weights, building a model makes masks, indices and what initializers need.
SPARE_NUMBERS, SPARE_TENSORS = 2**24, 10_000
ALLOWED_RATIO = 8
WEIGHTS = "model.safetensors"
SLICE_ROWS = 8192
# Arguments that FuxiCTR's constructors need and serving does not use.
UNUSED = {"optimizer": "adam", "loss": "binary_crossentropy", "metrics": ["AUC"], "verbose": 0, "model_root": "unused"}


class AllocatingAtMost(TorchDispatchMode):
    """In the block, new tensors may be neither much larger together nor many more than those of a trained state.

    Raises:
        ValueError: they would be; the tensor that exceeds the limit is not allocated.
    """

    def __init__(self, state: Mapping[str, Tensor]):
        super().__init__()
        self.numbers = ALLOWED_RATIO * sum(tensor.numel() for tensor in state.values()) + SPARE_NUMBERS
        self.tensors = ALLOWED_RATIO * len(state) + SPARE_TENSORS

    def __torch_dispatch__(self, func: Any, types: Any, args: Iterable[Any] = (), kwargs: Any = None) -> Any:
        wanted = _numbers_of(func, args)
        if wanted is not None:
            self.numbers, self.tensors = self.numbers - wanted, self.tensors - 1
            if self.numbers < 0 or self.tensors < 0:
                raise ValueError("its settings ask for far more weights than there are in the file")
        return func(*args, **(kwargs or {}))


def _numbers_of(func: Any, args: Iterable[Any]) -> int | None:
    """The size of the tensor that a call makes from sizes, as `empty([3, 2])` or `eye(3)`; None for another call."""
    args = [arg for arg in args if not isinstance(arg, Tensor)]
    if isinstance(func, torch._ops.OpOverload) and args and "Tensor" in str(func._schema.returns[0].type):
        if func._schema.name in ("aten::eye", "aten::eye.m"):
            return math.prod(args[:2]) if len(args) > 1 else args[0] ** 2
        if isinstance(args[0], list | torch.Size) and all(isinstance(size, int) for size in args[0]):
            return math.prod(args[0])
    return None


class ServedModel:
    """A trained model that only predicts; it can be shared by threads.

    Attributes:
        model: the FuxiCTR model, in evaluation mode.
        fields: the columns that a batch must have, in feature-map order.
        labels: what is predicted, T of them.
        config: the content of the folder's config.json.
        cold_ids: column -> value outside train's vocabulary that has an embedding of its own -> id. The ids of train
            values are in the data set's feature_vocab.json.
        sha256: of config.json, which has those of all other files; None without a folder.
    """

    def __init__(
        self,
        model: BaseModel,
        config: Mapping[str, Any],
        folder: Path | None = None,
        feature_processor: type | None = None,
    ):
        self.model, self.config = model.eval().requires_grad_(False), config
        self._folder, self._feature_processor = folder, feature_processor
        self.sha256 = digest_of_file(folder / CONFIG) if folder else None
        own, features = own_columns(model), model.feature_map.features
        self._specs = {name: spec for name, spec in features.items() if spec["type"] != "meta" and name not in own}
        self.fields = tuple(self._specs)
        self.labels = tuple(labels_of(type(model), model.feature_map))
        self.cold_ids = {
            name: {value: index for index, value in enumerate(values, start=self._specs[name]["first_cold_id"])}
            for name, values in (config.get("cold_values") or {}).items()
        }
        self._tables = JoinedTables(self.model)
        self._lock = threading.Lock()  # a model's taps follow one forward pass at a time
        self._raw: RawRows | None = None

    @property
    def raw(self) -> "RawRows":
        """What turns raw rows into a batch; the export's files of it are read when it is first asked for.

        Raises:
            UserError: the export has no preprocessing, or it is damaged.
        """
        with self._lock:
            if self._raw is None:
                if self._folder is None:
                    raise UserError("this model was made without preprocessing: it answers ids alone")
                self._raw = raw_rows(self._folder, self.config, self.fields, self.cold_ids, self._feature_processor)
            return self._raw

    def predict_raw(self, rows: Any) -> np.ndarray:
        """Probabilities of a click for raw rows, in the form of `predict`.

        Args:
            rows: a dict (one row, or columns), a list of dicts, or a frame of pandas or polars, with the raw columns
                `raw.needed` in any order, and others. An empty cell is filled as in training, and a value that
                training did not see has the id of those.

        Raises:
            UserError: a column is missing, or a cell holds what its column cannot.
        """
        from fuxictr_llm.serving.rows import as_frame, row_in_words

        raw = self.raw
        batch, _ = raw(as_frame(rows, raw.needed, raw.lists), row_in_words)
        return self.predict(batch)

    def predict(self, batch: Mapping[str, Any], slice_rows: int = SLICE_ROWS) -> np.ndarray:
        """Probabilities of a click, float32 `[N]`; where there are several labels `[N, T]`, in their order.

        Args:
            batch: column -> array, tensor or list, as FuxiCTR's loaders give them: ids `[N]`, values `[N]`, ids of
                a sequence `[N, L]`, vectors `[N, width]`. Other columns are ignored.
            slice_rows: so many rows go through the model at once; the last bits of a probability may depend on it.

        Raises:
            UserError: a column is missing, has another shape, or holds ids that the model was not trained on.
        """
        columns = {name: _checked_column(name, batch, spec) for name, spec in self._specs.items()}
        lengths = {name: len(column) for name, column in columns.items()}
        first, rows = next(iter(lengths.items()))
        other = next((name for name in lengths if lengths[name] != rows), None)
        if other:
            raise UserError(f"column {other!r} has {lengths[other]} rows, {first!r} has {rows}")
        parts = [
            self._forward({name: column[start : start + slice_rows] for name, column in columns.items()})
            for start in range(0, rows, slice_rows)
        ]
        probabilities = np.concatenate(parts) if parts else np.zeros((0, len(self.labels)), dtype=np.float32)
        return probabilities if len(self.labels) > 1 else probabilities[:, 0]

    def _forward(self, batch: dict[str, Tensor]) -> np.ndarray:
        with self._lock, self._tables.in_use(), torch.inference_mode():
            return predictions_of(self.model, self.model.forward(batch)).float().cpu().numpy()


def load_model(
    folder: Path | str, gpu: int = -1, backbone: type | str | None = None, feature_processor: type | None = None
) -> ServedModel:
    """The model in a folder that `python -m fuxictr_llm export` wrote; no code that the folder names is run.

    Args:
        folder: holds config.json and model.safetensors.
        gpu: index of the GPU, -1 for the CPU.
        backbone: the model's class, or its name as `registry.find_backbone` takes it, where it is one of yours.
        feature_processor: the class that preprocessed the data set, where it is one of yours; for raw rows alone.

    Raises:
        UserError: the folder is no export, is damaged, of another format or of a backbone that is not here, or
            there is no such GPU.
    """
    check_gpu(gpu)
    folder = Path(folder)
    config, where = read_config(folder), repr(str(folder / CONFIG))
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise UserError(f"{str(weights)!r} is missing; {AGAIN}")
    if digest_of_file(weights, read_all=True) != config["weights_sha256"]:
        raise UserError(f"{str(weights)!r} is not the file that was exported (its sha256 differs); {AGAIN}")
    check_files(folder, config)
    cls = find_exported(config["model"], config.get("backbone") or {}, where, backbone)
    check_columns(config["feature_map"]["features"], where)
    try:
        model = build_exported(cls, config, load_file(weights), where, gpu)
        served = ServedModel(model, config, folder.absolute(), feature_processor)
        served.predict(synthetic_batch(served.model.feature_map))  # columns that can be built may still not fit
        return served
    except Exception as error:  # a constructor fails in many ways on settings that it does not check
        raise UserError(f"{str(folder)!r} does not give a {config['model']} ({reason_of(error)}); {AGAIN}") from error


def build_backbone(
    cls: type[BaseModel], feature_map: FeatureMap, params: Mapping[str, Any], gpu: int = -1
) -> BaseModel:
    """A model of any class with arbitrary weights, built without the files of its pretrained embeddings."""
    with without_pretrained_files(feature_map), torch.random.fork_rng(devices=[]):
        settings = as_tuples(params, cls) | task_settings(cls, feature_map, params)
        model = cls(feature_map, **UNUSED | {"model_id": cls.__name__, "gpu": gpu} | settings)
        complete(model)
        return model


def build_exported(
    cls: type[BaseModel], config: Mapping[str, Any], state: Mapping[str, Tensor], where: str, gpu: int
) -> BaseModel:
    """The model of an export's config.json, with the weights of its file."""
    feature_map = make_feature_map(config["feature_map"], where)
    folded = config.get("folded")
    if folded:
        if folded["class"] not in FOLDED:
            raise unknown("kind of folded method", folded["class"], FOLDED)
        cls = enhance(cls, FOLDED[folded["class"]])
    # FuxiCTR would evaluate initializers; serving needs none, as the weights come from the file.
    params = {key: value for key, value in config["params"].items() if INITIALIZER not in key}
    fixed = {**UNUSED, "gpu": gpu, "model_id": cls.__name__}
    settings = (folded or {}).get("settings", {})
    with AllocatingAtMost(state):
        model = build_backbone(cls, feature_map, params | fixed | settings, gpu)
    if folded and list(model.enhancement.anatomy.fields) != folded["fields"]:
        raise ValueError(f"its fields are {model.enhancement.anatomy.fields}")
    model.load_state_dict(state)
    return model


def _checked_column(name: str, batch: Mapping[str, Any], spec: Mapping[str, Any]) -> Tensor:
    """A column of the batch as a tensor that fits the model."""
    if name not in batch:
        raise UserError(f"the batch lacks column {name!r}{nearest(name, batch)}")
    column = _as_tensor(name, batch[name])
    kind = spec["type"]
    width = {"sequence": spec.get("max_len"), "embedding": spec.get("pretrain_dim")}.get(kind)
    if column.dim() != (1 if width is None else 2) or (width is not None and column.shape[1] != width):
        wanted = "[N]" if width is None else f"[N, {width}]"
        raise UserError(f"column {name!r} has shape {list(column.shape)}; it must be {wanted}")
    if kind in ("categorical", "sequence"):
        return _checked_ids(name, column, spec["vocab_size"])
    if column.numel() and not bool(torch.isfinite(column).all()):
        raise UserError(f"column {name!r} holds a value that is not finite: {column[~column.isfinite()][0].item()}")
    return column


def _as_tensor(name: str, values: Any) -> Tensor:
    """A tensor of any numbers that numpy knows; torch itself takes no read-only, reversed or unsigned arrays."""
    if isinstance(values, Tensor):
        return values
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise UserError(f"column {name!r} is no array ({reason_of(error)})") from error
    if array.dtype.kind not in "biuf":
        example = next(iter(array.ravel()[:1].tolist()), "")
        raise UserError(f"column {name!r} holds {example!r}, which is no number; it takes ids or values")
    dtype = np.int64 if array.dtype.kind == "u" else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.require(array, dtype, ["C", "W"]))


def _checked_ids(name: str, ids: Tensor, vocab_size: int) -> Tensor:
    if not ids.numel():
        return ids
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise UserError(f"column {name!r} must hold integer ids (got {str(ids.dtype).removeprefix('torch.')})")
    lowest, highest = (bound.item() for bound in ids.aminmax())
    if lowest < 0 or highest >= vocab_size:
        wrong = lowest if lowest < 0 else highest
        raise UserError(f"column {name!r} holds id {wrong}; the model knows the ids 0 to {vocab_size - 1}")
    return ids
