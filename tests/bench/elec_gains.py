"""Does ELEC's gain network gain? Validation AUC of designs, and their controls, against the plain backbone by seed.

    python tests/bench/elec_gains.py --sets movielens100k xwines_time --seeds 1 2 3 > gains.md

A network is trained once (the caches of FUXICTR_LLM_CACHE), and each finished line stands in --log, so that a run that
was killed goes on. Test AUC is neither computed for a choice nor shown.
"""

import argparse
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from run_log import RunLog, mean_and_deviation

from fuxictr_llm.common.formats import LEFT, RIGHT, table_of
from fuxictr_llm.config.resolve import Experiment, load_experiment
from fuxictr_llm.experiment.preparation import prepare_run
from fuxictr_llm.experiment.run import run_experiment

HISTORY = {"of": "item_id", "liked": "label"}
HEAD = {"inject_vector": "h", "gain_backbone": "fresh"}
# In words -> what is changed of the defaults; a history, where there is one, is named.
DESIGNS: dict[str, dict[str, Any]] = {
    "h of one head on the same clicks, fresh": {**HEAD, "h_crossfit": 0, "text_history": None},
    "h of 5 heads, fresh": {**HEAD, "text_history": None},
    "joint, fresh": {"gain_backbone": "fresh", "text_history": None},
    "joint, from plain": {"gain_backbone": "tuned", "text_history": None},
    "joint, from plain, history": {"gain_backbone": "tuned", "text_history": HISTORY},
    "joint, from plain, history, h: noise": {"gain_backbone": "tuned", "text_history": HISTORY, "h": "noise"},
    "joint, plain fixed": {"text_history": None},
    "joint, plain fixed, h: noise": {"text_history": None, "h": "noise"},
    "joint, plain fixed, history": {"text_history": HISTORY},
    "joint, plain fixed, history, h: noise": {"text_history": HISTORY, "h": "noise"},
    "joint, plain fixed, into the logit": {"inject": "logit", "text_history": None},
}
# Whose vanilla network is asked for, too.
STUDENTS = ("joint, plain fixed", "joint, plain fixed, history", "self")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", required=True, metavar="DATA_SET")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--backbone", default="DeepFM")
    parser.add_argument("--designs", nargs="+", type=int, default=range(len(DESIGNS)), help="their numbers, from 0")
    parser.add_argument("--language-model", default="all-MiniLM-L6-v2")
    parser.add_argument("--students", action="store_true", help="train vanilla networks, too")
    parser.add_argument("--log", type=Path, default=Path("elec_gains.jsonl"))
    parser.add_argument("--table", action="store_true", help="train nothing: the table of what is in --log")
    asked = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    designs = [[*DESIGNS][number] for number in asked.designs]
    done = RunLog(asked.log)
    for seed in () if asked.table else asked.seeds:
        for dataset in asked.sets:
            for design in [*designs, *(["self"] if asked.students else [])]:
                student = asked.students and design in STUDENTS
                key = key_of(asked, dataset, design, seed)
                if key in done and not (student and "vanilla" not in done[key]):
                    continue
                done.add(key, measured(asked, dataset, design, seed, student))
    print(table(asked, done, designs, "gain"))
    if students := [design for design in STUDENTS if design in (*designs, "self")]:
        print("\n" + table(asked, done, students, "vanilla"))


def experiment_of(asked: argparse.Namespace, dataset: str, design: str, seed: int) -> Experiment:
    changes = {"teacher": "self"} if design == "self" else DESIGNS[design]
    settings = {"language_model": asked.language_model, "num_threads": 1, "verbose": 0, "pictures": False, **changes}
    return load_experiment(f"{asked.backbone}_ELEC_{dataset}", None, seed=seed, overrides=settings)


def key_of(asked: argparse.Namespace, dataset: str, design: str, seed: int) -> str:
    """Of a line in --log: a design with other settings is another."""
    return f"{dataset}|{design}|{seed}|{experiment_of(asked, dataset, design, seed).sha256[:12]}"


def measured(asked: argparse.Namespace, dataset: str, design: str, seed: int, student: bool) -> dict[str, float]:
    """Network -> validation AUC."""
    experiment = experiment_of(asked, dataset, design, seed)
    if student:
        record = run_experiment(experiment).record
        networks = {**record["networks"], "vanilla": record}
    else:
        networks = prepare_run(experiment, "unused").networks
    return {name: facts["metrics"]["valid"]["AUC"] for name, facts in networks.items()}


def table(
    asked: argparse.Namespace, done: Mapping[str, Mapping[str, float]], designs: Sequence[str], network: str
) -> str:
    """Mean difference to the plain backbone of the same seed, with its deviation, and in brackets how many seeds."""
    lines = []
    for design in designs:
        cells = []
        for dataset in asked.sets:
            keys = [key_of(asked, dataset, design, seed) for seed in asked.seeds]
            found = [done[key] for key in keys if network in done.get(key, ())]
            cell = mean_and_deviation([one[network] - one["plain"] for one in found])
            cells.append(f"{cell} ({len(found)})" if found else cell)
        lines.append([design, *cells])
    return table_of([network, *asked.sets], lines, [LEFT, *[RIGHT] * len(asked.sets)])


if __name__ == "__main__":
    main()
