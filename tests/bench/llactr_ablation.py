"""What each part of LLaCTR does: AUC and logloss against the plain backbone by seed, and how far g leaves the cosines.

    python tests/bench/llactr_ablation.py --sets xwines_time xwines --raw XWINES_FOLDER

Runs in the folder in which it is started, which gets data and checkpoints. Each finished run is a line of --log, so that
a command that was killed goes on. The defaults of LLaCTR are chosen by what it shows of validation.
"""

import argparse
import json
import logging
import shutil
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from run_log import RunLog, mean_and_deviation

from fuxictr_llm import load_experiment, run_experiment
from fuxictr_llm.common.formats import LEFT, RIGHT, table_of

ENCODER = {"language_model": "all-MiniLM-L6-v2", "ssft_epochs": 0}  # encodes the fields' words as it is
DECODER = {"language_model": "SmolLM2-135M-Instruct"}
BOTH = {**ENCODER, "lambda_fre": 0.05, "lambda_fie": 0.1, "llm_centre": False}
BOUNDED = {**BOTH, "fie_map": "bounded", "fie_bound": 10.0}
# In words -> LLaCTR's settings; None: the plain backbone.
ARMS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "full": {**BOTH, "fie_map": "full"},
    "bounded by 30": {**BOUNDED, "fie_bound": 30.0},
    "bounded by 10": BOUNDED,
    "bounded by 3": {**BOUNDED, "fie_bound": 3.0},
    "bounded by 1": {**BOUNDED, "fie_bound": 1.0},
    "diagonal": {**BOTH, "fie_map": "diagonal"},
    "FRE alone": {**BOUNDED, "lambda_fie": 0.0},
    "FIE alone, bounded by 10": {**BOUNDED, "lambda_fre": 0.0},
    "FIE alone, full": {**BOTH, "fie_map": "full", "lambda_fre": 0.0},
    "bounded by 10, centred": {**BOUNDED, "llm_centre": True},
    "bounded by 10, SmolLM2 without SSFT": {**BOUNDED, **DECODER, "ssft_epochs": 0},
    "bounded by 10, SmolLM2 with SSFT": {**BOUNDED, **DECODER, "ssft_epochs": None},
}
MEASURES = {"valid AUC": ("valid", "AUC"), "valid logloss": ("valid", "logloss"), "test AUC": ("test", "AUC")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", required=True, metavar="DATA_SET")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--backbone", default="DeepFM")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=[*ARMS], metavar="ARM")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="of every arm")
    parser.add_argument("--raw", help="the folder of the data set's published files, where they are not downloaded")
    parser.add_argument("--log", type=Path, default=Path("llactr_ablation.jsonl"))
    parser.add_argument("--table", action="store_true", help="train nothing: the table of what is in --log")
    asked = parser.parse_args()
    asked.set = {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in asked.set)}
    logging.basicConfig(level=logging.WARNING)
    done = RunLog(asked.log)
    for seed in () if asked.table else asked.seeds:
        for dataset in asked.sets:
            for arm in asked.arms:
                key = key_of(asked, dataset, arm, seed)
                if key in done:
                    continue
                done.add(key, measured(asked, dataset, ARMS[arm], seed))
    for dataset in asked.sets:
        print(f"\n{asked.backbone} on {dataset}, seeds {' '.join(map(str, asked.seeds))} {asked.set or ''}\n")
        print(table(asked, done, dataset))


def key_of(asked: argparse.Namespace, dataset: str, arm: str, seed: int) -> str:
    settings = "".join(json.dumps(part, sort_keys=True) for part in (ARMS[arm], asked.set or None) if part)
    return f"{asked.backbone}|{dataset}|{arm}|{settings}|{seed}"


def measured(
    asked: argparse.Namespace, dataset: str, settings: Mapping[str, Any] | None, seed: int
) -> dict[str, float]:
    """The measures of a run; with FIE `|g| / |c|` at its best weights, too."""
    name = f"{asked.backbone}_{dataset}" if settings is None else f"{asked.backbone}_LLaCTR_{dataset}"
    checkpoints = Path("checkpoints_of_ablation")
    shown = {"num_threads": 1, "verbose": 0, "pictures": False, "model_root": str(checkpoints)}
    raw = {"raw_data": asked.raw} if asked.raw else {}
    result = run_experiment(
        load_experiment(name, None, seed=seed, overrides={**shown, **raw, **asked.set, **(settings or {})})
    )
    shutil.rmtree(checkpoints)
    found = {measure: result.record["metrics"][split][metric] for measure, (split, metric) in MEASURES.items()}
    fie = settings and result.model.enhancement.fie
    if fie:
        upper = fie.pair_weights().detach().triu()
        found |= {"|g| / |c|": float(torch.linalg.norm(upper) / torch.linalg.norm(fie.cosines))}
    return found


def table(asked: argparse.Namespace, done: Mapping[str, Mapping[str, float]], dataset: str) -> str:
    """The plain backbone's means; of each arm the mean of its differences to plain at the same seed ± their sd."""
    lines = []
    for arm in asked.arms:
        runs = {seed: done.get(key_of(asked, dataset, arm, seed)) for seed in asked.seeds}
        plain = {seed: done.get(key_of(asked, dataset, "plain", seed)) for seed in asked.seeds}
        pairs = [(runs[seed], plain[seed]) for seed in asked.seeds if runs[seed] and plain[seed]]
        of_plain = arm == "plain"
        cells = [
            mean_and_deviation(
                [one[measure] - (0 if of_plain else other[measure]) for one, other in pairs], "" if of_plain else "+"
            )
            for measure in MEASURES
        ]
        ratios = [one["|g| / |c|"] for one, _ in pairs if "|g| / |c|" in one]
        lines.append([arm, *cells, f"{statistics.mean(ratios):.1f}" if ratios else "", str(len(pairs))])
    return table_of(["arm", *MEASURES, "|g| / |c|", "seeds"], lines, [LEFT, *[RIGHT] * 5])


if __name__ == "__main__":
    main()
