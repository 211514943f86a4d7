"""The file of a matrix of field vectors: safetensors with the field names beside it."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fuxictr_llm.errors import UserError

PREPARE = "python -m fuxictr_llm encode --expid EXPID"


def write_field_vectors(path: Path, vectors: Tensor, fields: Sequence[str]) -> None:
    """Save `[K, D_llm]` and the K field names that its rows belong to."""
    save_file({"field_vectors": vectors.float().contiguous()}, path, metadata={"fields": json.dumps(list(fields))})


def read_field_vectors(path: str | Path, fields: Sequence[str]) -> Tensor:
    """The rows of `fields`, in their order, as float32 `[K, D_llm]`.

    Raises:
        UserError: the file is missing, is no file of field vectors, or its fields are not these.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"field_vectors: {str(path)!r} is not a file; give one, or let '{PREPARE}' make it and print its path"
        )
    try:
        with safe_open(path, framework="pt") as file:
            stored = json.loads((file.metadata() or {})["fields"])
            vectors = file.get_tensor("field_vectors").float()
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(
            f"{str(path)!r} is no file of field vectors ({error}); make it anew with '{PREPARE}'"
        ) from error
    if sorted(stored) != sorted(fields):
        missing, extra = sorted(set(fields) - set(stored)), sorted(set(stored) - set(fields))
        raise UserError(
            f"{str(path)!r} holds vectors of other fields than the data set's: "
            f"missing {missing or 'none'}, unexpected {extra or 'none'}; make it anew with '{PREPARE}'"
        )
    if vectors.dim() != 2 or len(vectors) != len(stored) or not bool(torch.isfinite(vectors).all()):
        raise UserError(f"{str(path)!r} is not one finite vector per field (shape {tuple(vectors.shape)})")
    return vectors[[stored.index(field) for field in fields]]
