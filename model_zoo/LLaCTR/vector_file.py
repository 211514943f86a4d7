"""The file of a matrix of field vectors: safetensors with the field names beside it."""

import json
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from zipfile import BadZipFile

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fuxictr_llm.common.errors import UserError, reason_of

READ_ERRORS = (SafetensorError, UnpicklingError, KeyError, ValueError, TypeError, RuntimeError, EOFError, BadZipFile)
SUFFIXES = (".safetensors", ".npy", ".pt")
UNTUNED = "untuned"
PREPARE = "python -m fuxictr_llm encode --expid EXPID"


def write_field_vectors(path: Path, vectors: Tensor, fields: Sequence[str], untuned: Tensor | None = None) -> None:
    """Save `[K, D_llm]` and the K field names that its rows belong to; `untuned`: the vectors from before SSFT."""
    tensors = {"field_vectors": vectors} | ({} if untuned is None else {UNTUNED: untuned})
    tensors = {name: tensor.float().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, path, metadata={"fields": json.dumps(list(fields))})


def read_field_vectors(path: str | Path, fields: Sequence[str], *, exact: bool = True) -> Tensor:
    """The rows of `fields`, in their order, as float32 `[K, D_llm]`.

    A .safetensors file (ours) names its fields; .npy and .pt hold the matrix alone, whose rows are then
    taken to be in the order of `fields`. With `exact` off a file may name more fields than are asked for.

    Raises:
        UserError: the file is missing, is no matrix with a row per field, or its fields are not these.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"field_vectors: {str(path)!r} is not a file; give one, or let '{PREPARE}' make it and print its path"
        )
    try:
        vectors, stored = _read(path)
    except READ_ERRORS as error:
        problem = f"{str(path)!r} is no file of field vectors ({reason_of(error)})"
        raise UserError(f"{problem}; make it anew with '{PREPARE}'") from error
    stored = list(fields) if stored is None else stored
    missing, extra = sorted(set(fields) - set(stored)), sorted(set(stored) - set(fields))
    if missing or (extra and exact):
        raise UserError(
            f"{str(path)!r} holds vectors of other fields than the data set's: "
            f"missing {missing or 'none'}, unexpected {extra or 'none'}; make it anew with '{PREPARE}'"
        )
    if (
        vectors.dim() != 2
        or not vectors.shape[1]
        or len(vectors) != len(stored)
        or not bool(torch.isfinite(vectors).all())
    ):
        shape = tuple(vectors.shape)
        raise UserError(f"{str(path)!r} is not one finite vector for each of {len(stored)} fields (shape {shape})")
    return vectors[[stored.index(field) for field in fields]]


def read_untuned_vectors(path: str | Path, fields: Sequence[str]) -> Tensor | None:
    """The rows of `fields` from before SSFT, float32 `[K, D_llm]`; None where the file has none.

    Raises:
        UserError: as `read_field_vectors`; a file's other vectors are then no better.
    """
    read_field_vectors(path, fields, exact=False)
    if Path(path).suffix != ".safetensors":
        return None
    with safe_open(path, framework="pt") as file:
        if UNTUNED not in file.keys():  # noqa: SIM118 (no mapping)
            return None
        stored = json.loads(file.metadata()["fields"])
        return file.get_tensor(UNTUNED).float()[[stored.index(field) for field in fields]]


def _read(path: Path) -> tuple[Tensor, list[str] | None]:
    """The matrix in a file, and the fields of its rows where the file names them."""
    if path.suffix == ".npy":
        return _real(torch.from_numpy(np.load(path, allow_pickle=False))), None
    if path.suffix == ".pt":
        vectors = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(vectors, Tensor):
            raise ValueError(f"it holds a {type(vectors).__name__}, not a tensor")
        return _real(vectors.detach()), None
    with safe_open(path, framework="pt") as file:
        fields = json.loads((file.metadata() or {})["fields"])
        if not isinstance(fields, list) or len({*map(str, fields)}) < len(fields):
            raise ValueError(f"its fields are {fields!r}, which are no distinct names")
        return _real(file.get_tensor("field_vectors")), fields


def _real(vectors: Tensor) -> Tensor:
    if vectors.is_complex() or vectors.layout != torch.strided:
        raise ValueError(f"it holds {vectors.dtype} numbers in the layout {vectors.layout}, not a matrix of real ones")
    return vectors.float()
