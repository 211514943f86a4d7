"""What tests/training/test_devices.py computes in one process and in two: `torchrun ... cases_of_devices.py FOLDER TUNING`.

All results, of each process, lie in `FOLDER/results.pt`.
"""

import contextlib
import copy
import io
import logging
import sys
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from cases_of_training import (
    PLAIN,
    ROWS,
    SETTINGS,
    TRAININGS,
    accumulated,
    left_out,
    loader,
    long,
    model_of,
    trained,
    unapplied,
    unused,
)

import fuxictr_llm.__main__ as command
from fuxictr_llm import load_experiment, run_experiment
from fuxictr_llm.common import cache as store
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.processes import from_main, gathered, is_main, process_index, process_state
from fuxictr_llm.data import loader_choice
from fuxictr_llm.data.slices import FrequencySlices
from fuxictr_llm.registry import find_backbone
from fuxictr_llm.training import devices
from fuxictr_llm.training.checkpoints import Checkpoints
from fuxictr_llm.training.devices import evaluate
from fuxictr_llm.training.loop import fit
from fuxictr_llm.training.step import TrainingStep
from support import build


def parts(folder):
    """The ids in the batches of each process: shares, and whole batches in turn."""
    model = model_of("DNN")
    rows = loader(model, folder)
    first = {key: [batch["user"] for batch in read(rows)] for key, read in READS.items()}
    rows.start_at(1, 2)
    return {**first, "later": [batch["user"] for batch in rows.shares(process_index(), 2)]}


def cached(folder):
    """Which processes make an entry of the cache that all of them ask for: the main one alone, or all together."""
    makers = {}
    for together in (False, True):
        made_from, made = {"together": together, "folder": str(folder)}, []

        def make(made_from=made_from, made=made, together=together):
            made.append(process_index())
            save = partial(store.save, "cases", made_from, "a", lambda path: path.write_text("a"), {})
            return from_main(save) if together else save()

        entries = gathered([store.find_or_make("cases", made_from, "a", make, together=together) for _ in range(2)])
        assert all(entry == entries[0][0] for own in entries for entry in own)
        makers[together] = [process for own in gathered(made) for process in own]
    return makers


READS = {
    "all": lambda rows: _at_start(rows),
    "shares": lambda rows: _at_start(rows).shares(process_index(), len(gathered(0))),
    "in_turn": lambda rows: _at_start(rows).batches_in_turn(process_index(), len(gathered(0))),
}


def _at_start(rows):
    rows.start_at(0, 0)
    return rows


def measured(folder):
    """Metrics of a model, by group as well, with its weights; on few batches too."""
    model = model_of("DNN")
    model.feature_map.group_id = "group"
    values = {}
    for rows in (ROWS, 10):
        batches = loader(model, folder, shuffle=False, rows=rows)
        values[rows] = evaluate(model, batches, metrics=["AUC", "logloss", "gAUC"])
        slices = FrequencySlices("item", np.arange(20), np.arange(20) % 7)
        values[f"slices {rows}"] = slices.of_model(model, batches)
    return values


def resumed(folder):
    """Training with dropout: at one go, and interrupted in step 9 of 10; the last checkpoint is of step 8."""
    with patch.object(devices, "STEPS_A_QUESTION", 4):
        return _resumed(folder)


def _resumed(folder):
    settings = {**SETTINGS, "epochs": 2, "checkpoint_minutes": 0.0}
    results = {}
    for kind in ("whole", "interrupted"):
        place = folder / f"{kind}.checkpoint"
        for stops in (True, False) if kind == "interrupted" else (False,):
            model = build("DNN", "DNN", **{**PLAIN, "net_dropout": 0.3, "learning_rate": 1e-2})
            model.checkpoint = str(folder / f"{kind}.model")
            rows, valid = loader(model, folder), loader(model, folder, shuffle=False)
            if stops:
                model.forward = _stopping(model)
            with Checkpoints.of_training(place, {"of": kind}, settings) as checkpoints:
                try:
                    fit(model, rows, valid, settings, checkpoints)
                except KeyboardInterrupt:
                    gathered(0)  # the main process has written
                    results["checkpoints"] = [path.name for path in place.glob("step-*")]
                    continue
        results[kind] = model.state_dict()
    return results


def _stopping(model):
    calls = []

    def forward(inputs):
        calls.append(model.training)
        if sum(calls) > 8:
            raise KeyboardInterrupt
        return type(model).forward(model, inputs)

    return forward


def runs(folder):
    """Whole runs: their metrics, networks and slices."""
    results = {}
    for expid, changes in RUNS.items():
        name, *_ = expid.split(":")
        texts = {"language_model": str(folder / "language_model"), "llm_dtype": "float32"} if name in OF_TEXTS else {}
        if "knowledge_max_new_tokens" in changes:
            texts["knowledge_model"] = texts["language_model"]
        experiment = load_experiment(name, folder / "my_configs", overrides={**IN_RUNS, **texts, **changes})
        record = run_experiment(experiment).record
        results[expid] = {
            key: record[key] for key in ("metrics", "slices", "networks", "best_epoch", "hardware", "notes")
        }
    return results


IN_RUNS = {
    "learning_rate": 1e-3,
    "slice_by": "color",
    "metrics": ["AUC", "logloss", "gAUC"],
    "group_id": "user",
    "epochs": 1,
}
RUNS = {
    "MMoE_shop": {},
    "FM_ELEC_shop:staged": {"teacher": "self", "beta": 0},
    "FM_ELEC_shop:joint": {"teacher": "self", "beta": 0, "schedule": "joint", "warmup_epochs": 0},
    "FM_LLMFeature_shop": {},
    "FM_KAR_shop": {"expert_hidden": 8, "knowledge_dim": 4, "knowledge_max_new_tokens": 2},
    "FM_CTRL_shop": {"align_epochs": 1, "align_width": 8},
}
OF_TEXTS = ("FM_LLMFeature_shop", "FM_KAR_shop", "FM_CTRL_shop")


class OwnStep(find_backbone("FM")):
    def train_step(self, batch):
        return super().train_step(batch)


class OwnLoop(find_backbone("FM")):
    def train_epoch(self, batches):
        return super().train_epoch(batches)


class OwnMeasure(find_backbone("FM")):
    def evaluate(self, batches, metrics=None):
        return {"AUC": 0.5}


def refused(folder):
    """The messages for what several processes cannot do."""
    messages = {}
    for cls in (OwnStep, OwnLoop, OwnMeasure):
        model = build(cls, "FM")
        rows = loader(model, folder)
        messages[cls.__name__] = _message(lambda model=model, rows=rows: fit(model, rows, rows, SETTINGS))
    model = build("FM", "FM")
    batches = list(loader(model, folder))
    messages["unordered"] = _message(lambda: fit(model, batches, batches, SETTINGS))
    for key, value in {"batch_size": 1, "data_loader": "ray"}.items():
        experiment = load_experiment("FM_shop", folder / "my_configs", overrides={key: value})
        messages[key] = _message(lambda experiment=experiment: run_experiment(experiment))
    with patch.object(loader_choice, "fits_in_memory", lambda *_: False):
        unbuilt = {"data_root": str(folder / "unbuilt")}
        experiment = load_experiment("FM_shop", folder / "my_configs", overrides=unbuilt)
        messages["auto"] = _message(lambda: run_experiment(experiment))
        assert not (folder / "unbuilt").exists()
    messages["main fails"] = _message(lambda: from_main(_fail))
    return messages


def _fail():
    raise UserError("no such thing")


def _message(call):
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


def tuned(arguments):
    """What the command prints that tunes a language model."""
    with patch.object(command, "end_processes"), contextlib.redirect_stdout(io.StringIO()) as printed:
        assert command.main(arguments) == 0
    return printed.getvalue().splitlines()


SEVERAL = {
    "accumulated": accumulated,
    "unapplied": unapplied,
    "unapplied rows": partial(unapplied, embedding_update="rows"),
    "unused": unused,
    "left_out": left_out,
    "parts": parts,
    "cached": cached,
    "measured": measured,
    "long": long,
}


def compute(folder, cases):
    """The results of cases: all processes take part."""
    results = {}
    for name in cases:
        torch.set_num_threads(1)
        if name in TRAININGS:
            results[name] = trained(folder, *TRAININGS[name])
        else:
            results[name] = {**SEVERAL, "runs": runs, "resumed": resumed, "refused": refused}[name](folder)
    return results


def main():
    logging.disable(logging.WARNING)
    folder, tuning = Path(sys.argv[1]), sys.argv[2:]
    process_state()
    results = compute(folder, [*TRAININGS, *SEVERAL, "runs", "resumed", "refused"])
    results["tuned"] = tuned(tuning)
    everyone = gathered(copy.deepcopy(results))
    if is_main():
        torch.save(everyone, folder / "results.pt")
    gathered(0)
    logging.disable(logging.NOTSET)
    return run_that_fails()


def run_that_fails():
    """The exit code of a run in which the process that is not the main one fails, in its third step."""
    before = TrainingStep.__call__

    def step(self, batch, index):
        if process_index() == 1 and index == 2:
            raise UserError("the disk of process 1 is full")
        return before(self, batch, index)

    TrainingStep.__call__ = step
    return command.main(["run", "--expid", "DeepFM_shop", "--config", "my_configs"])


if __name__ == "__main__":
    sys.exit(main())
