"""Test AUC with `embedding_update: rows` beside `dense`, over several seeds.

    python tests/bench/auc_of_rows.py                                    # DeepFM on MovieLens-100K
    python tests/bench/auc_of_rows.py --xwines XWines_Slim_1K_wines_150K_ratings.zip

Runs in the folder in which it is started, which gets data and checkpoints. X-Wines Slim is published on GitHub by
rogerioxavier/X-Wines (CC0); label: rating >= 4, random 8:1:1.
"""

import argparse
import statistics
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd

from fuxictr_llm import load_experiment, run_experiment

RATINGS, WINES = "XWines_Slim_150K_ratings.csv", "XWines_Slim_1K_wines.csv"
OF_WINE = ["Type", "Elaborate", "Grapes", "ABV", "Body", "Acidity", "Country", "RegionID", "WineryID"]
DATASET = """
xwines:
    data_root: ./data/
    data_format: csv
    train_data: {folder}/train.csv
    valid_data: {folder}/valid.csv
    test_data: {folder}/test.csv
    min_categr_count: 1
    feature_cols:
    - {{name: [{columns}], active: true, dtype: str, type: categorical}}
    label_col: {{name: label, dtype: float}}
"""


def write_xwines(archive: Path, folder: Path) -> None:
    """Write tables of X-Wines and a config directory around them."""
    with zipfile.ZipFile(archive) as files:
        ratings, wines = (pd.read_csv(files.open(name), dtype=str) for name in (RATINGS, WINES))
    table = ratings.merge(wines[["WineID", *OF_WINE]], on="WineID")
    table["label"] = (table.pop("Rating").astype(float) >= 4).astype(int)
    table = table.drop(columns=["RatingID", "Date"])
    table = table.iloc[np.random.default_rng(2024).permutation(len(table))]
    cuts = [0, *(len(table) * part // 10 for part in (8, 9, 10))]
    for name in ("dataset_config", "method_config"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name, start, stop in zip(("train", "valid", "test"), cuts, cuts[1:], strict=False):
        table.iloc[start:stop].to_csv(folder / f"{name}.csv", index=False)
    columns = ", ".join(column for column in table if column != "label")
    config = DATASET.format(folder=folder.absolute(), columns=columns)
    (folder / "dataset_config" / "xwines.yaml").write_text(config)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--xwines", type=Path, help="the archive")
    args = parser.parse_args()
    expid, config, changes = "DeepFM_movielens100k", None, {"epochs": args.epochs}
    if args.xwines:
        write_xwines(args.xwines, Path("xwines"))
        expid, config = "DeepFM_xwines", Path("xwines")
        changes |= {"hidden_units": [64, 64], "batch_size": 1024}
    differences = []
    for seed in range(1, args.seeds + 1):
        aucs = {}
        for update in ("dense", "rows"):
            experiment = load_experiment(
                expid, config, seed=seed, overrides={**changes, "embedding_update": update}, threads=1
            )
            aucs[update] = run_experiment(experiment).record["metrics"]["test"]["AUC"]
        differences.append(aucs["rows"] - aucs["dense"])
        print(expid, "seed", seed, " ".join(f"{name} {auc:.6f}" for name, auc in aucs.items()), flush=True)
    print(f"{expid}: rows - dense, mean {statistics.mean(differences):+.5f}")
    if len(differences) > 1:
        print(f"  sd {statistics.stdev(differences):.5f} over {len(differences)} seeds")


if __name__ == "__main__":
    main()
