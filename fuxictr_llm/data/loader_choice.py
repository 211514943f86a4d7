"""Which loader reads a data set: in memory, in blocks, or FuxiCTR's with Ray.

torchrun's processes cannot share the last one, and are not left to choose between the others by the memory they see.
"""

import logging
from collections.abc import Mapping
from typing import Any, Literal

import polars as pl
import psutil
from fuxictr.features import FeatureMap

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.processes import from_main, local_process_count, under_torchrun
from fuxictr_llm.data import SPLITS
from fuxictr_llm.data.build import files_of_splits
from fuxictr_llm.data.in_memory import count_rows, data_files
from fuxictr_llm.data.raw import RawSplit
from fuxictr_llm.data.shares import RAY_UNSHARED
from fuxictr_llm.host.columns import feature_columns, label_columns


def fits_in_memory(rows: int, columns: int) -> bool:
    """Whether rows x columns ids of 4 bytes take at most half of the memory that is free now."""
    return rows * columns * 4 <= psutil.virtual_memory().available / 2


def loader_kind(feature_map: FeatureMap, params: Mapping[str, Any]) -> Literal["memory", "blocks", "ray"]:
    """How built data is read, as `data_loader` says; with `auto`, in memory where that has room, or in blocks."""
    kind = params.get("data_loader", "auto")
    if kind != "auto":
        return kind
    columns = feature_map.input_length + len(feature_map.labels)
    paths = [params[f"{split}_data"] for split in SPLITS if params.get(f"{split}_data")]
    files = [file for path in paths for file in data_files(path)]
    if any(file.suffix == ".npz" for file in files):
        return "memory"
    rows = sum(map(count_rows, map(str, files)))
    if _fits(rows, columns):
        return "memory"
    logging.info("%d rows x %d columns do not fit in memory: reading them in shuffled blocks", rows, columns)
    return "blocks"


def check_shared(feature_map: FeatureMap, params: Mapping[str, Any]) -> None:
    """Under torchrun, check that the processes can share the loader of built data.

    Raises:
        UserError: Ray would read it, or each process would choose the loader itself.
    """
    if not under_torchrun() or _is_long(params):
        return
    kind = from_main(lambda: loader_kind(feature_map, params))
    _check_kind(kind, params)


def check_shared_before(params: Mapping[str, Any]) -> None:
    """The same before anything is built, as far as the raw files that are there tell it.

    Raises:
        UserError: as there.
    """
    if not under_torchrun() or _is_long(params):
        return
    kind = params.get("data_loader", "auto")
    if kind == "auto":
        kind = "memory" if from_main(lambda: _will_fit(params)) else "blocks"
    _check_kind(kind, params)


def _check_kind(kind: str, params: Mapping[str, Any]) -> None:
    if kind == "ray":
        raise UserError(RAY_UNSHARED)
    if kind == "blocks" and params.get("data_loader", "auto") == "auto":
        raise UserError(
            "the data does not fit in memory once for each of torchrun's processes; set data_loader: blocks, which "
            "reads it in parts, in an order of its own, or start fewer processes"
        )


def _is_long(params: Mapping[str, Any]) -> bool:
    """LongCTR's data is always read in memory."""
    return bool(params.get("user_info") or params.get("item_info"))


def _will_fit(params: Mapping[str, Any]) -> bool:
    if params.get("prepare"):  # makes the raw files
        return True
    try:
        rows = sum(len(RawSplit(files, params)) for files in files_of_splits(params).values())
    except (pl.exceptions.PolarsError, OSError):  # building says what is wrong
        return True
    active = [column for column in feature_columns(params) if column.get("active", True)]
    widths = [column.get("max_len") or column.get("pretrain_dim") or 1 for column in active]
    return _fits(rows, sum(widths) + len(label_columns(params)))


def _fits(rows: int, columns: int) -> bool:
    return fits_in_memory(rows * local_process_count(), columns)  # each process holds the data
