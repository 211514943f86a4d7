"""What FuxiCTR builds of raw files, cell by cell and with whole columns in memory, beside what we build of them."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from fuxictr.preprocess.build_dataset import merge_meta_ddf

from fuxictr_llm.data import SPLITS
from fuxictr_llm.data.build import built_data
from fuxictr_llm.data.processors import find_processor

FILES = ("feature_map.json", "feature_vocab.json")


def built_by_fuxictr(params, folder):
    """Texts of FILES and the columns of each split, with nothing of ours between: its Ray only cuts into batches."""
    processor = find_processor(params)(**{**params, "data_root": str(folder)})
    frames = {
        split: processor.preprocess(
            processor.read_data(
                params[f"{split}_data"], params["data_format"], params.get("sep") or ",", params.get("n_rows")
            )
        )
        for split in SPLITS
        if params.get(f"{split}_data")
    }
    keys = ("min_categr_count", "num_buckets")
    meta = merge_meta_ddf(processor, *(frames.get(split) for split in SPLITS))
    processor.fit(frames["train"], meta_ddf=meta, **{key: params[key] for key in keys if key in params})
    made = {name: (Path(processor.data_dir) / name).read_text() for name in FILES}
    for split, frame in frames.items():
        batch = {column.name: column.to_numpy() for column in frame.collect()}
        made[split] = {name: np.asarray(values) for name, values in processor.transform(batch).items()}
    return made


def built_by_us(params):
    """The same of our build."""
    files = built_data(params)
    folder = Path(params["data_root"]) / params["dataset_id"]
    made = {name: (folder / name).read_text() for name in FILES}
    for split in SPLITS:
        if files[f"{split}_data"]:
            table = pq.read_table(files[f"{split}_data"]).to_pydict()
            made[split] = {name: np.asarray(values) for name, values in table.items()}
    return made


def assert_as_fuxictr(params, folder):
    """Check that both are the same: ids, values, files, the order of columns and of keys."""
    ours, theirs = built_by_us(params), built_by_fuxictr(params, folder)
    assert ours.keys() == theirs.keys()
    for name in FILES:
        assert ours[name] == theirs[name], name
    assert json.loads(ours[FILES[0]])["dataset_id"] == params["dataset_id"]
    for split in ours.keys() - {*FILES}:
        assert list(ours[split]) == list(theirs[split])
        for name, values in ours[split].items():
            np.testing.assert_array_equal(values, theirs[split][name], f"{name} of {split}")
