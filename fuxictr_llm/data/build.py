"""Raw csv or parquet -> FuxiCTR's built data set (ids in parquet, feature_map.json, feature_vocab.json).

FuxiCTR's FeatureProcessor fits and transforms. Where the data fits in memory that happens here, in slices
and without Ray; larger data goes through FuxiCTR's own build_dataset. `build.json` beside the result holds
the digests of what went in, so that a changed file or column list is noticed.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fuxictr
import polars as pl
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from fuxictr.preprocess import FeatureProcessor, build_dataset
from fuxictr.preprocess.build_dataset import merge_meta_ddf

from fuxictr_llm.errors import UserError, nearest
from fuxictr_llm.files import digest_of, digest_of_file, read_json, replacing_dir, writable_dir, write_json

SPLITS = ("train", "valid", "test")
SLICE_ROWS = 100_000
# What decides about the built data, besides the raw files.
DECIDES = (
    "feature_cols",
    "label_col",
    "min_categr_count",
    "num_buckets",
    "sep",
    "n_rows",
    "data_format",
    "data_block_size",
)
VERSION = 1


def fits_in_memory(rows: int, columns: int) -> bool:
    """Whether rows x columns ids of 4 bytes take at most half of the memory that is free now."""
    return rows * columns * 4 <= psutil.virtual_memory().available / 2


def built_data(params: Mapping[str, Any]) -> dict[str, Any]:
    """Build the data set where that is needed; the settings with the built files in place of the raw ones.

    Raises:
        UserError: a raw file is missing, empty, lacks a declared column or has a label other than 0 and 1;
            a built data set is not there or is of unknown origin and has other columns.
    """
    data_dir = Path(params["data_root"]) / params["dataset_id"]
    if params["data_format"] == "npz" or (params["data_format"] == "parquet" and not params.get("rebuild_dataset")):
        if not (data_dir / "feature_map.json").is_file():
            raise UserError(
                f"data_format {params['data_format']!r} means a built data set, but {str(data_dir)!r} has no "
                "feature_map.json; give data_format: csv with raw files, or the folder of a data set FuxiCTR built"
            )
        return {}
    raw = {split: params[f"{split}_data"] for split in SPLITS if params.get(f"{split}_data")}
    if "train" not in raw:
        raise UserError(f"data set {params['dataset_id']!r} names no train_data")
    if params.get("valid_size") or params.get("test_size"):
        raise UserError("valid_size and test_size do not work in FuxiCTR 2.3; give valid_data and test_data as files")
    made_from = _made_from(params, raw)
    if not _is_current(data_dir, made_from, params):
        _build(data_dir, made_from, params, raw)
    suffix = "" if params.get("data_block_size") else ".parquet"
    files = {f"{split}_data": str(data_dir / f"{split}{suffix}") for split in raw}
    return {"valid_data": None, "test_data": None, **files}


def _made_from(params: Mapping[str, Any], raw: Mapping[str, str]) -> dict[str, Any]:
    files = {split: [str(path) for path in _raw_files(path, params["data_format"])] for split, path in raw.items()}
    decides = {key: params.get(key) for key in DECIDES}
    return {
        "settings": digest_of(decides),
        "raw": {split: [digest_of_file(path) for path in paths] for split, paths in files.items()},
        "fuxictr": fuxictr.__version__,
        "version": VERSION,
    }


def _raw_files(path: str, data_format: str) -> list[Path]:
    found = [Path(path)] if path.endswith(data_format) else sorted(Path(path).glob(f"*.{data_format}"))
    found = [file for file in found if file.is_file()]
    if not found:
        raise UserError(f"data file {path!r} is missing; check train_data, valid_data and test_data in the data set")
    empty = [file for file in found if file.stat().st_size == 0]
    if empty:
        raise UserError(f"data file {str(empty[0])!r} is empty")
    return found


def _is_current(data_dir: Path, made_from: Mapping[str, Any], params: Mapping[str, Any]) -> bool:
    """Whether the built data set can be used; says why where it has to be built anew."""
    if not (data_dir / "feature_map.json").exists():
        return False
    manifest = read_json(data_dir / "build.json")
    if manifest is None:
        return _is_of_fuxictr(data_dir, params)
    if manifest.get("made_from") == made_from:
        return True
    old = manifest.get("made_from", {})
    what = [key for key in made_from if old.get(key) != made_from[key]]
    logging.warning("Rebuilding %s: changed since it was built: %s", data_dir, ", ".join(what))
    return False


def _is_of_fuxictr(data_dir: Path, params: Mapping[str, Any]) -> bool:
    """A data set without our manifest: FuxiCTR built it. It is used if its columns are the declared ones."""
    feature_map = read_json(data_dir / "feature_map.json") or {"features": []}
    built = {name for feature in feature_map["features"] for name in feature}
    declared = {col["name"] for col in _columns(params) if col.get("active", True)}
    if built != declared:
        raise UserError(
            f"{str(data_dir)!r} was built by something else, with other columns "
            f"({sorted(built ^ declared)[:5]} differ); remove it, or give the data set another dataset_id"
        )
    logging.warning("%s was built by FuxiCTR itself: whether its raw files changed cannot be checked", data_dir)
    return True


def _columns(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The declared feature columns, one dict a column."""
    columns = []
    for col in params["feature_cols"]:
        names = col["name"] if isinstance(col["name"], list) else [col["name"]]
        columns += [{**col, "name": name} for name in names]
    return columns


def _labels(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    return params["label_col"] if isinstance(params["label_col"], list) else [params["label_col"]]


def _build(data_dir: Path, made_from: dict[str, Any], params: Mapping[str, Any], raw: Mapping[str, str]) -> None:
    writable_dir(params["data_root"], "name another folder with --set data_root=DIR")
    logging.info("Building data set %s", data_dir)
    with replacing_dir(data_dir) as folder:
        processor = FeatureProcessor(**{**params, "data_root": str(folder.parent), "dataset_id": folder.name})
        # FuxiCTR writes the id into feature_map.json, and we build in a folder of another name.
        processor.feature_map.dataset_id = params["dataset_id"]
        frames = {split: _read(processor, path, params) for split, path in raw.items()}
        rows = {}
        for split, frame in frames.items():
            rows[split] = _check_raw(frame, raw[split], params)
        if params.get("data_block_size") or not fits_in_memory(sum(rows.values()), len(_columns(params))):
            logging.info(
                "Building with FuxiCTR's Ray pipeline: %d rows in blocks, or too many for memory", sum(rows.values())
            )
            build_dataset(processor, **params)
        else:
            _build_in_memory(processor, frames, params)
        write_json(folder / "build.json", {"made_from": made_from, "rows": rows})


def _read(processor: FeatureProcessor, path: str, params: Mapping[str, Any]) -> pl.LazyFrame:
    return processor.read_data(
        path, data_format=params["data_format"], sep=params.get("sep") or ",", n_rows=params.get("n_rows")
    )


def _check_raw(frame: pl.LazyFrame, path: str, params: Mapping[str, Any]) -> int:
    """The number of rows, after checking columns and labels."""
    try:
        present = frame.collect_schema().names()
    except pl.exceptions.PolarsError as error:
        raise UserError(f"data file {path!r} cannot be read as {params['data_format']}: {error}") from error
    columns = [*_labels(params), *(col for col in _columns(params) if col.get("active", True))]
    for col in columns:
        # A column with a preprocess step may be derived from others.
        if col["name"] not in present and not col.get("preprocess"):
            hint = nearest(col["name"], present) or ";"
            raise UserError(
                f"data file {path!r} has no column {col['name']!r}{hint} it has: {', '.join(map(str, present[:30]))}"
            )
    rows = frame.select(pl.len()).collect().item()
    if not rows:
        raise UserError(f"data file {path!r} is empty: it has a header and no rows")
    if params["task"] == "binary_classification":
        for label in _labels(params):
            _check_label(frame, label["name"], path, present)
    return rows


def _check_label(frame: pl.LazyFrame, name: str, path: str, present: list[str]) -> None:
    if name not in present:
        return
    wrong = pl.col(name).is_in([0, 1]).fill_null(False).not_()
    try:
        found = frame.filter(wrong).select(name).head(1).collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        raise UserError(f"data file {path!r} cannot be read: {str(error).splitlines()[0]}") from error
    if len(found):
        raise UserError(f"label {name!r} of data file {path!r} must be 0 or 1 (got {found.item()})")


def _build_in_memory(
    processor: FeatureProcessor, frames: Mapping[str, pl.LazyFrame], params: Mapping[str, Any]
) -> None:
    frames = {split: processor.preprocess(frame) for split, frame in frames.items()}
    processor.fit(
        frames["train"],
        meta_ddf=merge_meta_ddf(processor, *(frames.get(split) for split in SPLITS)),
        min_categr_count=params.get("min_categr_count", 1),
        num_buckets=params.get("num_buckets", 10),
    )
    for split, frame in frames.items():
        _transform(processor, frame.collect(), Path(processor.data_dir) / f"{split}.parquet")


def _transform(processor: FeatureProcessor, frame: pl.DataFrame, path: Path) -> None:
    """Write ids and values as parquet, a slice at a time."""
    writer = None
    for start in range(0, len(frame), SLICE_ROWS):
        batch = {column.name: column.to_numpy() for column in frame.slice(start, SLICE_ROWS)}
        table = pa.table({name: _arrow(values) for name, values in processor.transform(batch).items()})
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    writer.close()


def _arrow(values: Any) -> pa.Array:
    """A column of parquet; a 2-d array `[rows, L]` becomes lists of length L."""
    if getattr(values, "ndim", 1) == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return pa.array(values)
