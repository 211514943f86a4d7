"""Files of given vectors (`pretrained_emb`), checked: an error names the column, the file and the key."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import polars as pl
from fuxictr.preprocess.tokenizer import load_pretrain_emb

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.host.columns import feature_columns

ENDINGS = ("h5", "npz", "parquet")
READ_ERRORS = (OSError, KeyError, ValueError, TypeError, EOFError, BadZipFile, pl.exceptions.PolarsError)
DTYPES = {"int": int, "float": float, "str": str}


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
