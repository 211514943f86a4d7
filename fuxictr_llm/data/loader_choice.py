"""Which loader reads a data set: one in memory, or FuxiCTR's with Ray, which torchrun's processes cannot share."""

import logging
from collections.abc import Mapping
from typing import Any

import polars as pl
import pyarrow.parquet as pq
from fuxictr.features import FeatureMap

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.processes import from_main, local_process_count, under_torchrun
from fuxictr_llm.data import SPLITS
from fuxictr_llm.data.build import files_of_splits, fits_in_memory
from fuxictr_llm.data.in_memory import data_files
from fuxictr_llm.data.raw import RawSplit
from fuxictr_llm.data.shares import RAY_UNSHARED
from fuxictr_llm.host.columns import feature_columns, label_columns


def reads_in_memory(feature_map: FeatureMap, params: Mapping[str, Any]) -> bool:
    """Whether built data is read in memory, as `data_loader` says; with `auto`, as memory allows."""
    kind = params.get("data_loader", "auto")
    if kind != "auto":
        return kind == "memory"
    columns = feature_map.input_length + len(feature_map.labels)
    paths = [params[f"{split}_data"] for split in SPLITS if params.get(f"{split}_data")]
    files = [file for path in paths for file in data_files(path)]
    if any(file.suffix == ".npz" for file in files):
        return True
    rows = sum(pq.read_metadata(file).num_rows for file in files)
    if _fits(rows, columns):
        return True
    logging.info("%d rows x %d columns do not fit in memory: reading with FuxiCTR's Ray loader", rows, columns)
    return False


def check_shared(feature_map: FeatureMap, params: Mapping[str, Any]) -> None:
    """Under torchrun, check that the processes can share the loader of built data.

    Raises:
        UserError: Ray would read it.
    """
    if under_torchrun() and not _is_long(params) and not from_main(lambda: reads_in_memory(feature_map, params)):
        raise UserError(RAY_UNSHARED)


def check_shared_before(params: Mapping[str, Any]) -> None:
    """The same before anything is built, as far as the raw files that are there tell it.

    Raises:
        UserError: Ray would read what is built of them.
    """
    if not under_torchrun() or _is_long(params) or params.get("data_loader", "auto") == "memory":
        return
    if params.get("data_loader") == "ray" or not from_main(lambda: _will_fit(params)):
        raise UserError(RAY_UNSHARED)


def _is_long(params: Mapping[str, Any]) -> bool:
    """LongCTR's data is always read in memory."""
    return bool(params.get("user_info") or params.get("item_info"))


def _will_fit(params: Mapping[str, Any]) -> bool:
    if params.get("prepare"):  # makes the raw files
        return True
    try:
        rows = sum(len(RawSplit(files, params)) for files in files_of_splits(params).values())
    except pl.exceptions.PolarsError:  # building says what is wrong
        return True
    active = [column for column in feature_columns(params) if column.get("active", True)]
    widths = [column.get("max_len") or column.get("pretrain_dim") or 1 for column in active]
    return _fits(rows, sum(widths) + len(label_columns(params)))


def _fits(rows: int, columns: int) -> bool:
    return fits_in_memory(rows * local_process_count(), columns)  # each process holds the data
