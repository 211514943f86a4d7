"""AUC of the means of items and users, below which a model of a data set with words has learnt little.

    python tests/bench/item_user_means.py --xwines DIR --movietweetings DIR

A row's score is the log odds of its item's mean label in train plus those of its user's, each smoothed by five ratings of
the mean of all; an item or user that train lacks has that mean. DIR holds the published files; without it they are
downloaded. Writes the splits into the folder in which it is started.
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from fuxictr_llm import load_experiment
from fuxictr_llm.data.prepare import prepare_raw_data

SMOOTHED_BY = 5


def tables_of(dataset_id: str, raw: Path | None) -> dict[str, pd.DataFrame]:
    """The prepared train, valid and test rows."""
    params = load_experiment(f"FM_{dataset_id}", overrides={"raw_data": raw and str(raw)}).params
    prepare_raw_data(params)
    return {split: pd.read_csv(params[f"{split}_data"], dtype={"item_id": str}) for split in ("train", "valid", "test")}


def scores(train: pd.DataFrame, rows: pd.DataFrame) -> np.ndarray:
    """Log odds of each row, `[N]`."""
    mean, odds = train["label"].mean(), np.zeros(len(rows))
    for column in ("item_id", "user_id"):
        of_value = train.groupby(column)["label"].agg(["sum", "count"])
        smoothed = (of_value["sum"] + SMOOTHED_BY * mean) / (of_value["count"] + SMOOTHED_BY)
        chance = rows[column].map(smoothed).fillna(mean)
        odds += np.log(chance / (1 - chance))
    return odds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--xwines", type=Path, metavar="DIR")
    parser.add_argument("--movietweetings", type=Path, metavar="DIR")
    args = parser.parse_args()
    print(f"{'':24}{'valid AUC':>10}{'test AUC':>10}{'test rows of users that train lacks':>38}")
    for name in ("xwines", "movietweetings"):
        for dataset_id in (name, f"{name}_time"):
            tables = tables_of(dataset_id, getattr(args, name))
            train, test = tables["train"], tables["test"]
            aucs = [roc_auc_score(tables[split]["label"], scores(train, tables[split])) for split in ("valid", "test")]
            lacking = 1 - test["user_id"].isin(train["user_id"]).mean()
            print(f"{dataset_id:24}" + "".join(f"{auc:>10.4f}" for auc in aucs) + f"{lacking:>38.1%}", flush=True)


if __name__ == "__main__":
    main()
