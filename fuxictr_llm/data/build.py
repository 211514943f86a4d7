"""Raw csv or parquet -> FuxiCTR's built data set (ids in parquet, feature_map.json, feature_vocab.json).

`preprocessing.json` beside it is for serving (see fitted.py).

FuxiCTR's FeatureProcessor, or the data set's own, fits and transforms. What it counts is counted in a stream, and
what it transforms comes in slices, so that beside the vocabularies little is in memory. `build.json` beside the
result holds the digests of what went in, so that a changed file or column list is noticed.
"""

import logging
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import fuxictr
import polars as pl
from fuxictr.preprocess.build_dataset import merge_meta_ddf

from fuxictr_llm.common.code_digest import digest_of_code
from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.files import (
    damaged_files,
    digest_of,
    digests_of,
    digests_of_files,
    explain_write_errors,
    merged,
    not_as_noted,
    own_folder,
    read_json,
    remove_abandoned,
    sizes_of,
    writable_dir,
    write_json,
)
from fuxictr_llm.common.full_disk import is_of_full_disk
from fuxictr_llm.data import SPLITS
from fuxictr_llm.data.counting import CountsInStream, check_own_counting
from fuxictr_llm.data.field_words import collecting
from fuxictr_llm.data.fills import fills_of_made
from fuxictr_llm.data.first_pass import first_pass
from fuxictr_llm.data.fitted import FILE as PREPROCESSING
from fuxictr_llm.data.fitted import describe_fitted
from fuxictr_llm.data.held import MANIFEST, lock_of
from fuxictr_llm.data.id_files import write_splits
from fuxictr_llm.data.prepare import check_published_there
from fuxictr_llm.data.processors import code_of, find_processor, settings_of
from fuxictr_llm.data.raw import PACKED, RawSplit, check_columns, check_shares, pretrained_files, raw_files
from fuxictr_llm.data.raw_checks import check_stored
from fuxictr_llm.host.columns import feature_columns
from fuxictr_llm.host.embeddings import check_declared_vectors, with_used_vectors
from fuxictr_llm.host.preprocess import FeatureProcessor

# The config keys on which the built data depends, besides the raw files.
BUILD_KEYS = (
    "feature_cols",
    "label_col",
    "min_categr_count",
    "num_buckets",
    "sep",
    "n_rows",
    "data_format",
    "data_block_size",
)
OTHER_DATA_ROOT = "name another folder with --set data_root=DIR"
VERSION = 4


def built_columns(data_dir: Path) -> dict[str, dict[str, Any]]:
    """Name and description of each column in a built data set's feature_map.json; none where it is not readable."""
    feature_map = read_json(data_dir / "feature_map.json") or {}
    return {name: spec for columns in feature_map.get("features", []) for name, spec in columns.items()}


def built_data(params: Mapping[str, Any]) -> dict[str, Any]:
    """Build the data set where that is needed; the settings with the built files in place of the raw ones.

    Raises:
        UserError: a raw file is missing, empty, lacks a declared column or holds what its type cannot be; a column
            shares the embedding of one that it cannot; a built data set is not there or is of unknown origin and has
            other columns; the processor is unknown.
    """
    data_dir, files = Path(params["data_root"]) / params["dataset_id"], files_of_splits(params)
    if not files:
        return {}
    remove_abandoned(data_dir.parent)
    raw = {split: params[f"{split}_data"] for split in files}
    _check_places(data_dir, params, [file for paths in files.values() for file in paths])
    processor_cls = collecting(find_processor(params))
    made_from = _made_from(params, files)
    with lock_of(params) as lock:
        while (reason := _why_outdated(data_dir, made_from, params)) is not None:
            if not lock.alone():
                lock.wait()
                continue
            try:  # another process may have built it since it was looked at
                if (reason := _why_outdated(data_dir, made_from, params)) is not None:
                    _build(data_dir, made_from, params, raw, processor_cls, reason)
            finally:
                lock.share()
    suffix = "" if params.get("data_block_size") else ".parquet"
    built = {f"{split}_data": str(data_dir / f"{split}{suffix}") for split in raw}
    return {"valid_data": None, "test_data": None, **built}


def check_there(params: Mapping[str, Any]) -> None:
    """Before anything is made or logged: what is read is there, or will be made.

    Raises:
        UserError: a file is not.
    """
    if not params.get("prepare"):
        check_published_there(params)
        files_of_splits(params)


def files_of_splits(params: Mapping[str, Any]) -> dict[str, list[Path]]:
    """The raw files of each split that the settings name; none where the data set is built already.

    Raises:
        UserError: one is missing or empty, or the built data set is not there.
    """
    if params["data_format"] == "npz" or (params["data_format"] == "parquet" and not params.get("rebuild_dataset")):
        data_dir = (Path(params["data_root"]) / params["dataset_id"]).absolute()
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
    check_shares(params)
    return {split: raw_files(path, params["data_format"]) for split, path in raw.items()}


def _check_places(data_dir: Path, params: Mapping[str, Any], files: Iterable[Path]) -> None:
    """Raw files may lie in the data set's folder, but not where the built ones go."""
    taken = [(data_dir / split).resolve() for split in SPLITS if params.get("data_block_size")]
    taken += [(data_dir / f"{split}.parquet").resolve() for split in SPLITS]
    for file in files:
        if file.resolve() in taken or file.resolve().parent in taken:
            raise UserError(f"raw file {str(file)!r} lies where the built data goes; move it to another folder")


def _made_from(params: Mapping[str, Any], files: Mapping[str, list[Path]]) -> dict[str, Any]:
    settings = {key: params.get(key) for key in BUILD_KEYS}
    if processor := params.get("feature_processor"):
        own = settings_of(processor, params)
        settings = merged(settings, {"feature_processor": processor, "code": code_of(processor), "own": own})
    if vectors := pretrained_files(params):
        settings = merged(settings, {"pretrained": digests_of_files(vectors)})
    return {
        "settings": digest_of(settings),
        "raw": {split: digests_of_files(paths) for split, paths in files.items()},
        "fuxictr": fuxictr.__version__,
        "code": digest_of_code([__name__]),
        "version": VERSION,
    }


def _why_outdated(data_dir: Path, made_from: Mapping[str, Any], params: Mapping[str, Any]) -> str | None:
    """Why the data set has to be built, empty where there is none yet; None: what is built can be used."""
    if not (data_dir / "feature_map.json").exists():
        return ""
    if not (data_dir / MANIFEST).exists():
        _check_of_fuxictr(data_dir, params)
        return None
    manifest = read_json(data_dir / MANIFEST)
    old = isinstance(manifest, dict) and (manifest.get("made_from") or {})
    if not isinstance(old, dict) or not isinstance(old.get("raw", {}), dict):
        return f"its {MANIFEST} is damaged"
    # It may have more splits than are asked for: a search trains on it without test data.
    old = {**old, "raw": {split: old.get("raw", {}).get(split) for split in made_from["raw"]}}
    if what := [key for key in made_from if old.get(key) != made_from[key]]:
        return f"changed since it was built: {', '.join(what)}"
    digests = manifest.get("sha256")  # not in those of earlier versions
    damaged = damaged_files(data_dir, digests) if digests else not_as_noted(data_dir, manifest.get("sizes", {}))
    return f"missing or damaged: {', '.join(damaged)}" if damaged else None


def _check_of_fuxictr(data_dir: Path, params: Mapping[str, Any]) -> None:
    """A data set without our manifest: FuxiCTR built it. It is used if its columns are the declared ones."""
    built = set(built_columns(data_dir))
    declared = {col["name"] for col in feature_columns(params) if col.get("active", True)}
    if built != declared:
        raise UserError(
            f"{str(data_dir)!r} was built by something else, with other columns "
            f"({sorted(built ^ declared)[:5]} differ); remove it, or give the data set another dataset_id"
        )
    logging.warning("%s was built by FuxiCTR itself: whether its raw files changed cannot be checked", data_dir)


def _build(
    data_dir: Path,
    made_from: dict[str, Any],
    params: Mapping[str, Any],
    raw: Mapping[str, str],
    processor_cls: type[FeatureProcessor],
    reason: str,
) -> None:
    if reason:
        logging.warning("Rebuilding %s: %s", data_dir, reason)
    check_declared_vectors(params)
    params = {**params, "feature_cols": with_used_vectors(params["feature_cols"])}
    writable_dir(params["data_root"], OTHER_DATA_ROOT)
    logging.info("Building data set %s", data_dir)
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    with explain_write_errors(data_dir, OTHER_DATA_ROOT), own_folder(data_dir) as own:
        folder = own / data_dir.name
        folder.mkdir()
        try:
            processor = processor_cls(**{**params, "data_root": str(folder.parent), "dataset_id": folder.name})
            # FuxiCTR writes the id into feature_map.json; a folder's name may be a part of it.
            processor.feature_map.dataset_id = params["dataset_id"]
            rows = _build_with(processor, params, raw)
        except UserError:
            raise
        except Exception as error:  # FuxiCTR and polars fail in many ways on data that the config does not fit
            if is_of_full_disk(error):
                raise
            problem = f"{type(error).__name__}: {reason_of(error)}"
            raise UserError(f"data set {params['dataset_id']!r} cannot be built: {problem}") from error
        _install(
            folder,
            data_dir,
            {"made_from": made_from, "rows": rows, "sizes": sizes_of(folder), "sha256": digests_of(folder)},
        )


def _build_with(processor: FeatureProcessor, params: Mapping[str, Any], raw: Mapping[str, str]) -> dict[str, int]:
    """Build in the processor's folder; the number of rows of each split."""
    frames = {split: _read(processor, path, params) for split, path in raw.items()}
    splits = {split: RawSplit(raw_files(path, params["data_format"]), params) for split, path in raw.items()}
    for split, frame in frames.items():
        check_columns(frame, raw[split], params)
    schemas = {split: frame.collect_schema() for split, frame in frames.items()}
    check_stored(schemas, params)
    made = {split: processor.preprocess(frame) for split, frame in frames.items()}
    rows, processor.filled = {}, fills_of_made(find_processor(params), processor, list(frames.values()))
    for split, fills in zip(frames, processor.filled, strict=True):
        rows[split], plain = first_pass(processor, frames[split], made[split], splits[split], params)
        fills |= plain
    for split, count in rows.items():
        if count < (params.get("data_block_size") or 0):
            raise UserError(
                f"data_block_size {params['data_block_size']} is more than the {count} rows of {raw[split]!r}: "
                "FuxiCTR would make no block of them; give a smaller one, or 0 for one file"
            )
    if not isinstance(processor, CountsInStream):
        check_own_counting(find_processor(params), processor, made["train"])
    processor.rows = rows
    processor.fit(
        made["train"],
        meta_ddf=merge_meta_ddf(processor, *(made.get(split) for split in SPLITS)),
        min_categr_count=params.get("min_categr_count", 1),
        num_buckets=params.get("num_buckets", 10),
    )
    write_splits(processor, made, splits, params.get("data_block_size") or 0)
    write_json(Path(processor.data_dir) / PREPROCESSING, describe_fitted(processor, schemas["train"], params))
    return rows


def _install(built: Path, data_dir: Path, manifest: dict[str, Any]) -> None:
    """Move what was built into the data set's folder, which may hold files of the user's too.

    Until all is there, the manifest says that it is not.
    """
    data_dir.mkdir(parents=True, exist_ok=True)
    write_json(data_dir / MANIFEST, {"made_from": None})
    for path in built.iterdir():
        target = data_dir / path.name
        if target.is_dir():
            shutil.rmtree(target)
        path.replace(target)
    write_json(data_dir / MANIFEST, manifest)


def _read(processor: FeatureProcessor, path: str, params: Mapping[str, Any]) -> pl.LazyFrame:
    sep, n_rows = params.get("sep") or ",", params.get("n_rows")
    if path.endswith(PACKED):  # which FuxiCTR does not read
        return pl.scan_csv(path, separator=sep, schema_overrides=processor.dtype_dict, n_rows=n_rows)
    return processor.read_data(path, data_format=params["data_format"], sep=sep, n_rows=n_rows)
