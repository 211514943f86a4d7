"""Runs of small made files, and what turns their raw rows into ids."""

from pathlib import Path

import numpy as np
import polars as pl

from fuxictr_llm.common.files import read_json
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.build import built_data
from fuxictr_llm.data.fitted import Fitted
from fuxictr_llm.data.processors import find_processor
from fuxictr_llm.experiment.run import run_experiment
from fuxictr_llm.host.columns import feature_columns, label_columns
from fuxictr_llm.serving.raw import RawRows
from raw_forms import FORMS, write_published

SETTINGS = {"epochs": 1, "embedding_dim": 4, "batch_size": 64, "num_threads": 1, "verbose": 0, "pictures": False}
SETTINGS |= {"keep_predictions": True}
ROWS = {"train": 300, "valid": 100, "test": 150}


def run_of(expid, config=None, **changes):
    """A run of an expid on small made files: its result, and its folder as a command takes it."""
    experiment = load_experiment(expid, config, overrides={**SETTINGS, "prepare": None, **changes})
    params = experiment.params
    if config is None:
        if Path(params["train_data"]).parent.name in FORMS:
            write_published(params)
        else:
            write_made(params)
    result = run_experiment(experiment)
    return result, f"{params['model_root']}/{params['dataset_id']}/{result.record['model_id']}"


def write_made(params):
    """Write csv files with random values in the columns that a data set declares; some are unseen, some empty."""
    for seed, split in enumerate(ROWS):
        draw, rows = np.random.default_rng(seed), ROWS[split]
        made = {label["name"]: draw.integers(0, 2, rows) for label in label_columns(params)}
        for col in feature_columns(params):
            values = [f"v{value}" for value in draw.integers(0, 12 if split == "train" else 14, rows * 3)]
            if col["type"] == "sequence":
                values = [col["splitter"].join(values[3 * row : 3 * row + draw.integers(0, 4)]) for row in range(rows)]
            made[col["name"]] = [None if draw.random() < 0.1 else value for value in values[:rows]]
        path = Path(params[f"{split}_data"])
        path.parent.mkdir(parents=True, exist_ok=True)
        pl.DataFrame(made).write_csv(path)


def raw_rows_of(params, more=None):
    """What makes ids of raw rows, of a data set that is built here; and its built files."""
    files = built_data(params)
    folder = Path(params["data_root"]) / params["dataset_id"]
    content, vocabularies = read_json(folder / "preprocessing.json"), read_json(folder / "feature_vocab.json")
    assert content["unservable"] is None
    rows = [(column, value, index) for column, ids in vocabularies.items() for value, index in ids.items()]
    table = pl.DataFrame(rows, schema=["column", "value", "id"], orient="row")
    kinds = {col["name"]: col["type"] for col in feature_columns(params)}
    fields = [name for name in content["columns"] if kinds[name] != "meta"]
    return RawRows(Fitted(content, table, more), fields, find_processor(params)), files
