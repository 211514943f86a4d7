"""Further splits of a data set: all its rows, cut into train, valid and test anew.

`resplit: {by: random, number: 2, of: 5}` is the second of five random splits. `by: time` gives rolling ones (rolling
origin: Tashman, "Out-of-sample tests of forecasting accuracy", International Journal of Forecasting 16, 2000): the last
is the split in the order of time itself, each before it ends where the test rows of the next one begin, so that no two
share a test row. Valid and test have as many rows as in the data set's own files.

A split is a data set with an id of its own. Its files lie in `<data_root>/<dataset_id>/raw`, `split.json` beside them
says from what they were made.
"""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import polars as pl

from fuxictr_llm.common.errors import UserError, reason_of, unknown
from fuxictr_llm.common.files import (
    digest_of,
    digest_of_file,
    explain_write_errors,
    read_json,
    replacing,
    write_json,
)
from fuxictr_llm.common.locks import locked
from fuxictr_llm.config.keys import SplitBy
from fuxictr_llm.data import SPLITS
from fuxictr_llm.data.prepare import PREPARERS, prepare_raw_data
from fuxictr_llm.data.raw import raw_files

AFFECTS_RESULTS = False  # the digests of the files that it makes count; see common/code_digest.py

BY = get_args(SplitBy)
VERSION = 1


def split_params(params: Mapping[str, Any], by: str | None, number: int, of: int) -> dict[str, Any]:
    """The settings of an experiment on a further split of its data set.

    Args:
        by: `random` or `time`; None: `time` where the data set is in the order of time.
        number: from 1 to `of`.

    Raises:
        UserError: the data set is no csv files of all three splits, or has no time stamps for `time`.
    """
    name = params["dataset_id"]
    if params["data_format"] != "csv" or not all(params.get(f"{split}_data") for split in SPLITS):
        raise UserError(f"data set {name!r} cannot be split anew: that needs csv files of train, valid and test")
    if by is None:
        by = "time" if has_time(params) else "random"
    if by not in BY:
        raise unknown("kind of split", by, BY)
    if by == "time" and not has_time(params):
        raise UserError(
            f"data set {name!r} has no time stamps for rolling splits: name a time_column, take a data set in the "
            "order of time (prepare_split: time), or --split-by random"
        )
    resplit = {"by": by, "number": number, "of": of}
    return {**params, "dataset_id": split_id(name, resplit), "resplit": resplit}


def split_id(dataset_id: str, resplit: Mapping[str, Any]) -> str:
    """The id of a split of a data set."""
    return f"{dataset_id}_{resplit['by']}{resplit['number']}of{resplit['of']}"


def has_time(params: Mapping[str, Any]) -> bool:
    """Whether the rows have a known order in time: by a column, or because `prepare` writes them in it."""
    if params.get("time_column"):
        return True
    preparer = PREPARERS.get(params.get("prepare") or "")
    return preparer is not None and params.get("prepare_split", preparer.keys.get("prepare_split", "time")) == "time"


def split_files(params: Mapping[str, Any]) -> dict[str, str]:
    """`train_data`, `valid_data` and `test_data` of a split; none of other data."""
    if not params.get("resplit"):
        return {}
    folder = Path(params["data_root"]) / params["dataset_id"] / "raw"
    return {f"{split}_data": str(folder / f"{split}.csv") for split in SPLITS if params.get(f"{split}_data")}


def is_outdated(params: Mapping[str, Any]) -> bool:
    """Whether a split's files were made from other files than those that are there now."""
    if not _manifest_file(params).exists():
        return False
    try:
        return _manifest(params).get("made_from") != _made_from(params)
    except UserError:  # the originals are not there, and cannot be compared
        return False


def make_split(params: Mapping[str, Any]) -> dict[str, Any]:
    """Make the raw files of a data set, as `prepare_raw_data`, and those of its split where they are not there yet.

    Returns:
        For the run record: what is to be known about the raw files.

    Raises:
        UserError: the settings are none that `split_params` makes, a file cannot be read, the time column is not there
            or holds no times, two files have other columns, a split has no rows, or there are too few rows for so many
            splits.
    """
    _check(params)
    files = split_files(params)
    folder = str(Path(params["train_data"]).absolute().parent)
    with locked(f"split-{digest_of(folder)[:16]}"):  # whose files all splits need
        facts = prepare_raw_data(params)
        made_from, manifest_file = _made_from(params), _manifest_file(params)
        manifest = _manifest(params)
        if manifest.get("made_from") != made_from or manifest.get("sha256") != _digests(files):
            with explain_write_errors(manifest_file, "name another folder with --set data_root=DIR"):
                manifest_file.parent.mkdir(parents=True, exist_ok=True)
                _write(params, files)
                write_json(manifest_file, {"made_from": made_from, "sha256": _digests(files)})
    return facts


def _check(params: Mapping[str, Any]) -> None:
    resplit = params["resplit"]
    if not params["dataset_id"].endswith(split_id("", resplit)):
        raise UserError(
            f"resplit {resplit} needs a data set of its own, called NAME{split_id('', resplit)} (got "
            f"{params['dataset_id']!r}); leaderboard --splits makes one"
        )
    if lacking := [f"{split}_data" for split in SPLITS if not params.get(f"{split}_data")]:
        raise UserError(f"data set {params['dataset_id']!r} cannot be split anew: resplit needs {lacking[0]}")
    if not 1 <= resplit["number"] <= resplit["of"]:
        raise UserError(f"resplit: number must be from 1 to {resplit['of']} (got {resplit['number']})")


def _manifest_file(params: Mapping[str, Any]) -> Path:
    return Path(params["data_root"]) / params["dataset_id"] / "raw" / "split.json"


def _manifest(params: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `split.json`; empty where it is absent or damaged."""
    manifest = read_json(_manifest_file(params))
    return manifest if isinstance(manifest, dict) else {}


def _made_from(params: Mapping[str, Any]) -> dict[str, Any]:
    paths = {split: raw_files(params[f"{split}_data"], "csv") for split in SPLITS if params.get(f"{split}_data")}
    digests = {split: [digest_of_file(path) for path in files] for split, files in paths.items()}
    keys = ("resplit", "time_column", "sep")
    return {"files": digests, **{key: params.get(key) for key in keys}, "version": VERSION}


def _digests(files: Mapping[str, str]) -> dict[str, str]:
    return {split: digest_of_file(path) for split, path in files.items() if Path(path).is_file()}


def _write(params: Mapping[str, Any], files: Mapping[str, str]) -> None:
    parts: dict[str, pl.DataFrame] = {}
    for split in SPLITS:
        parts[split] = _read(params, split, parts["train"].columns if parts else None)
    rows = pl.concat(parts.values())
    positions = cut({split: len(part) for split, part in parts.items()}, params["resplit"], params["dataset_id"])
    if params["resplit"]["by"] == "time" and params.get("time_column"):
        rows = rows[_times(rows, params).arg_sort().to_numpy()]  # which polars sorts stably
    for key, path in files.items():
        with replacing(path) as temporary:
            rows[positions[key.removesuffix("_data")]].write_csv(temporary, separator=params.get("sep") or ",")


def _read(params: Mapping[str, Any], split: str, columns: Sequence[str] | None) -> pl.DataFrame:
    """The rows of a split of the whole data, all as text.

    Args:
        columns: those of the first file of train, in its order; None: this is train.
    """
    parts = []
    for path in raw_files(params[f"{split}_data"], "csv"):
        try:
            part = pl.read_csv(path, separator=params.get("sep") or ",", infer_schema=False)
        except pl.exceptions.PolarsError as error:
            raise UserError(f"{str(path)!r} cannot be read as csv: {reason_of(error)}") from error
        columns = columns or part.columns
        if odd := sorted({*columns} ^ {*part.columns}):
            has = "has" if odd[0] in part.columns else "lacks"
            raise UserError(
                f"{str(path)!r} {has} the column {odd[0]!r}, other than the first file of train: a resplit needs the "
                "same columns in all files"
            )
        parts.append(part.select(columns))
    return pl.concat(parts)


def cut(sizes: Mapping[str, int], resplit: Mapping[str, Any], name: str = "the data set") -> dict[str, np.ndarray]:
    """Which rows are train, valid and test, by their positions (in the order of time, if they are split by it).

    Args:
        sizes: rows of each split of the data set itself.
        name: of the data set, for an error.

    Raises:
        UserError: a split has no rows, or the first of the rolling splits would have less than half of the train rows.
    """
    if lacking := [split for split in SPLITS if not sizes[split]]:
        raise UserError(f"data set {name!r} cannot be split anew: its {lacking[0]} file has no rows")
    total, valid, test = sum(sizes.values()), sizes["valid"], sizes["test"]
    end, order = total, np.arange(total)
    if resplit["by"] == "random":
        order = np.random.default_rng(resplit["number"]).permutation(total)
    else:
        most = 1 + sizes["train"] // (2 * test)
        if resplit["of"] > most:
            raise UserError(f"{name!r} has rows for at most {most} rolling splits (got {resplit['of']})")
        end -= (resplit["of"] - resplit["number"]) * test
    bounds = {"train": (0, end - test - valid), "valid": (end - test - valid, end - test), "test": (end - test, end)}
    return {split: order[slice(*bound)] for split, bound in bounds.items()}


def _times(rows: pl.DataFrame, params: Mapping[str, Any]) -> pl.Series:
    """The time column as numbers or times that can be sorted."""
    name = params["time_column"]
    if name not in rows.columns:
        raise unknown("time_column", name, rows.columns, f"data set {params['dataset_id']!r}")
    times: pl.Series = rows[name].cast(pl.Float64, strict=False)
    if times.null_count() == len(times):
        with contextlib.suppress(pl.exceptions.PolarsError):  # no form of a time that polars knows
            times = rows[name].str.to_datetime(strict=False)
    if times.null_count():
        wrong = rows[name].filter(times.is_null())[0]
        data = f"data set {params['dataset_id']!r}"
        raise UserError(f"time_column {name!r} of {data} must hold numbers or ISO 8601 times (got {wrong!r})")
    return times
