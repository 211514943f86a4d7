"""Small raw files of any columns, and what is built of them."""

import json
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq

from fuxictr_llm.data.build import built_data

SPLITS = ("train", "valid", "test")


def column(name, kind, dtype="str", **more):
    return {"name": name, "active": True, "dtype": dtype, "type": kind, **more}


def table(rows=6, **columns):
    """The same rows for each split, with a label."""
    return {split: pl.DataFrame({"click": [0, 1] * (rows // 2), **columns}) for split in SPLITS}


def settings(folder, columns, tables, data_format="parquet", **more):
    """Settings of a data set whose raw files are written to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for split, rows in tables.items():
        path = folder / f"{split}.{data_format}"
        rows.write_parquet(path) if data_format == "parquet" else rows.write_csv(path)
        files[f"{split}_data"] = str(path)
    return {
        "data_root": str(folder / "data"),
        "dataset_id": "made",
        "data_format": data_format,
        "rebuild_dataset": True,
        "feature_cols": columns,
        "label_col": {"name": "click", "dtype": "float"},
        **files,
        **more,
    }


def built(params):
    """All that a build decides: vocabulary, description, texts, and the rows of each split."""
    files, folder = built_data(params), Path(params["data_root"]) / params["dataset_id"]
    made = {name: json.loads((folder / f"{name}.json").read_text()) for name in NAMES}
    return made | {split: pq.read_table(files[f"{split}_data"]).to_pydict() for split in SPLITS}


NAMES = ("feature_vocab", "feature_map", "field_texts")
