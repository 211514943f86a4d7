"""Raw csv or parquet files of a data set: which they are, and whether they fit what the config declares."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from fuxictr_llm.errors import UserError, nearest


def raw_files(path: str, data_format: str) -> list[Path]:
    """The files behind a path: itself, or those of a folder.

    Raises:
        UserError: there is none, it has another ending than FuxiCTR wants, or one is empty.
    """
    if any(sign in path for sign in "*?["):
        raise UserError(
            f"data file {path!r}: FuxiCTR takes *, ? and [ in a path for a pattern; rename the folder or file"
        )
    found = [Path(path)] if path.endswith(data_format) else sorted(Path(path).glob(f"*.{data_format}"))
    found = [file for file in found if file.is_file()]
    whole = str(Path(path).absolute())  # a relative one is looked for where the command runs
    if not found and Path(path).exists():
        raise UserError(f"data file {whole!r} must end in .{data_format}, or be a folder of such files")
    if not found:
        raise UserError(f"data file {whole!r} is missing; check train_data, valid_data and test_data in the data set")
    empty = [file for file in found if file.stat().st_size == 0]
    if empty:
        raise UserError(f"data file {str(empty[0].absolute())!r} is empty")
    return found


def pretrained_files(params: Mapping[str, Any]) -> list[Path]:
    """The files of vectors that active columns name as `pretrained_emb`, each once.

    Raises:
        UserError: one is missing.
    """
    named = [col for col in feature_columns(params) if col.get("pretrained_emb") and col.get("active", True)]
    for col in named:
        if not Path(col["pretrained_emb"]).is_file():
            whole = str(Path(col["pretrained_emb"]).absolute())
            raise UserError(f"pretrained_emb {whole!r} of column {col['name']!r} is missing")
    return list(dict.fromkeys(Path(col["pretrained_emb"]) for col in named))


def feature_columns(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The declared feature columns, one dict a column."""
    columns = []
    for col in params["feature_cols"]:
        names = col["name"] if isinstance(col["name"], list) else [col["name"]]
        columns += [{**col, "name": name} for name in names]
    return columns


def label_columns(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The declared labels."""
    return params["label_col"] if isinstance(params["label_col"], list) else [params["label_col"]]


def check_columns(frame: pl.LazyFrame, path: str, params: Mapping[str, Any]) -> None:
    """Check that a split can be read and has the declared columns.

    Raises:
        UserError: it cannot, or lacks one.
    """
    try:
        present = frame.collect_schema().names()
    except pl.exceptions.PolarsError as error:
        raise UserError(f"data file {path!r} cannot be read as {params['data_format']}: {error}") from error
    columns = [*label_columns(params), *(col for col in feature_columns(params) if col.get("active", True))]
    for col in columns:
        # A column with a preprocess step may be derived from others.
        if col["name"] not in present and not col.get("preprocess"):
            hint = nearest(col["name"], present) or ";"
            raise UserError(
                f"data file {path!r} has no column {col['name']!r}{hint} it has: {', '.join(map(str, present[:30]))}"
            )
