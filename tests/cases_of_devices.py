"""What tests/training/test_devices.py computes in one process and in two: `torchrun ... cases_of_devices.py FOLDER TUNING`.

Every case leaves its result in `FOLDER/<its name>.pt`, written by the main process.
"""

import contextlib
import copy
import io
import logging
import sys
from functools import partial
from itertools import islice
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch

import fuxictr_llm.__main__ as command
from fuxictr_llm import load_experiment, run_experiment
from fuxictr_llm.common import cache as store
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.processes import from_main, gathered, is_main, process_index, process_state
from fuxictr_llm.data import loader_choice
from fuxictr_llm.data.in_memory import InMemoryLoader
from fuxictr_llm.data.loader import Histories, Items, LongSequenceLoader
from fuxictr_llm.data.shares import own_shares
from fuxictr_llm.data.slices import FrequencySlices
from fuxictr_llm.distillation import JointTeacher, ShuffledTeacher, Teacher
from fuxictr_llm.enhancement.model import enhance
from fuxictr_llm.model_zoo.LLaCTR.vector_file import write_field_vectors
from fuxictr_llm.registry import find_backbone, find_method
from fuxictr_llm.training import devices
from fuxictr_llm.training.checkpoints import Checkpoints
from fuxictr_llm.training.devices import evaluate
from fuxictr_llm.training.loop import fit
from fuxictr_llm.training.networks import ChangedBatches
from fuxictr_llm.training.optimizers import configure_optimizer
from fuxictr_llm.training.step import TrainingStep
from support import BACKBONES, build, params, small_feature_map
from support_long import long_data, long_feature_map

ROWS, BATCH = 67, 16  # the last batch has 3 rows: too few for two processes
# No dropout, whose masks differ between processes, and no BatchNorm, which has statistics of each process on CPUs.
PLAIN = {"batch_norm": False, "net_dropout": 0.0, "mlp1_dropout": 0.0, "mlp2_batch_norm": False, "learning_rate": 1e-3}
# WuKong: biases in front of a LayerNorm have no effect; Adam makes steps of the noise in their gradients.
PLAIN |= {"mlp_batch_norm": False, "layer_norm": False}
# A joint student does all that a staged one does, and trains its teacher.
METHODS = ("plain", "LLaCTR", "joint")
TRAININGS = {f"{name}-{method}": (name, method) for name in BACKBONES for method in METHODS}
TRAININGS["DeepFM-staged"] = ("DeepFM", "staged")
TRAININGS["DeepFM-shuffled"] = ("DeepFM", "shuffled")
TRAININGS |= {f"DeepFM-{method}-rows": ("DeepFM", method, "rows") for method in METHODS}
SETTINGS = {"epochs": 1, "batch_size": BATCH, "seed": 3, "num_threads": 1, "learning_rate": 1e-3}


def write_rows(feature_map, path, rows=ROWS):
    """Random rows of a feature map with clicks that depend on the user."""
    draw = np.random.default_rng(0)
    columns = {}
    for name, spec in feature_map.features.items():
        width = {"sequence": spec.get("max_len"), "embedding": spec.get("pretrain_dim")}.get(spec["type"])
        shape = (rows, width) if width else (rows,)
        is_id = spec["type"] in ("categorical", "sequence", "meta")
        columns[name] = draw.integers(0, spec.get("vocab_size", 9), shape) if is_id else draw.random(shape, np.float32)
    for label in feature_map.labels:
        columns[label] = (draw.random(rows) < columns["user"] / 12).astype(np.float64)
    np.savez(path, **columns)


def loader(model, folder, shuffle=True, rows=ROWS):
    path = Path(folder) / f"{'-'.join(model.feature_map.features)}-{rows}.npz"
    from_main(lambda: path.exists() or write_rows(model.feature_map, path, rows))
    return InMemoryLoader(model.feature_map, str(path), batch_size=BATCH, shuffle=shuffle, seed=5)


def model_of(name, method="plain", folder=Path(), **changes):
    """A model with what its method needs: LLaCTR its vectors, ELEC a teacher, trained before or in training."""
    settings = {**PLAIN, **changes}
    if method == "plain":
        return build(name, name, **settings)
    if method == "LLaCTR":
        fields = [field for field, spec in small_feature_map(name).features.items() if spec["type"] != "meta"]
        path = folder / f"{len(fields)}.safetensors"
        vectors = torch.randn(len(fields), 9, generator=torch.Generator().manual_seed(3))
        from_main(lambda: write_field_vectors(path, vectors, fields))
        cls = enhance(find_backbone(name), find_method("LLaCTR").model_cls)
        return build(cls, name, field_vectors=str(path), lambda_fie=0.7, **settings)
    cls = enhance(find_backbone(name), find_method("ELEC").model_cls)
    schedule = "joint" if method == "joint" else "staged"
    student = build(cls, name, alpha=0.5, beta=0.1, schedule=schedule, **settings)
    teacher = build(name, name, seed=9, **settings)
    if method == "joint":
        student.enhancement.learn_from(JointTeacher(TrainingStep(teacher, SETTINGS)))
    else:
        student.enhancement.learn_from({"staged": Teacher, "shuffled": ShuffledTeacher}[method](teacher))
    return student


def trained(folder, name, method, embedding_update="dense"):
    """State after an epoch, the teacher's too."""
    model = model_of(name, method, folder)
    configure_optimizer(model, {"embedding_update": embedding_update, "optimizer_impl": "fuxictr"})
    model.checkpoint = str(folder / "best.model")
    teacher = getattr(getattr(model, "enhancement", None), "teacher", None)
    fit(model, loader(model, folder), loader(model, folder, shuffle=False), SETTINGS)
    state = dict(model.state_dict())
    if method == "joint":
        state |= {f"teacher.{key}": value for key, value in teacher.model.state_dict().items()}
    state["best"] = torch.tensor(model._best_metric)
    return state


def accumulated(folder):
    """A model that sums up the gradients of 2 batches."""
    model = model_of("DNN")
    model.accumulation_steps = 2
    model.checkpoint = str(folder / "best.model")
    fit(model, loader(model, folder), loader(model, folder, shuffle=False), SETTINGS)
    return model.state_dict()


def unapplied(folder, embedding_update="dense"):
    """The state of a step that sums up the gradients of 2 batches, after 3 of them; every process sees its share."""
    model = model_of("DNN")
    configure_optimizer(model, {"embedding_update": embedding_update})
    model.accumulation_steps = 2
    step = TrainingStep(model.train(), SETTINGS)
    for index, batch in enumerate(islice(own_shares(loader(model, folder)), 3)):
        step(batch, index)
    state = step.training_state()
    return {**state["model"], **{f"{name}.gradient": value.to_dense() for name, value in state["gradients"].items()}}


def unused(folder):
    """A student whose hint gets no gradient while the teacher warms up: weight decay must not move it."""
    cls = enhance(find_backbone("DNN"), find_method("ELEC").model_cls)
    settings = {**PLAIN, "representation_loss": "hint", "schedule": "joint", "warmup_epochs": 1, "weight_decay": 0.1}
    model = build(cls, "DNN", alpha=0.5, beta=0.1, **settings)
    teacher = build("DNN", "DNN", seed=9, **PLAIN)
    model.enhancement.learn_from(JointTeacher(TrainingStep(teacher, SETTINGS)))
    before = model.enhancement.hint.weight.detach().clone()
    model.checkpoint = str(folder / "best.model")
    fit(model, loader(model, folder), loader(model, folder, shuffle=False), SETTINGS)
    return {"moved": (model.enhancement.hint.weight - before).detach(), **model.state_dict()}


def left_out(folder):
    """Training on rows of which some are left out."""
    model = model_of("DNN")
    model.checkpoint = str(folder / "best.model")
    rows = ChangedBatches(loader(model, folder), dict, lambda batch: batch["user"] % 3 != 0)
    fit(model, rows, loader(model, folder, shuffle=False), SETTINGS)
    return model.state_dict()


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


def long(folder):
    """Training and metrics of a model of long sequences."""
    from_main(lambda: (folder / "long").exists() or long_data(folder / "long", rows=ROWS))
    feature_map, place = long_feature_map(), folder / "long"
    cls = find_backbone("LongCTR/DIN")
    settings = {
        **params("DNN", **PLAIN),
        "dnn_hidden_units": [8],
        "attention_hidden_units": [4],
        "accumulation_steps": 2,
    }
    settings |= {"max_len": 4, "attention_hidden_activations": "ReLU", "din_use_softmax": False}
    torch.manual_seed(0)
    model = cls(feature_map, **settings)
    model.checkpoint = str(folder / "best.model")
    files = Histories(str(place / "user_info.parquet")), Items(str(place / "item_info.parquet"), feature_map)
    rows = [
        LongSequenceLoader(
            feature_map, str(place / f"{split}.parquet"), histories=files[0], items=files[1], max_len=4,
            batch_size=BATCH, shuffle=split == "train",
        )
        for split in ("train", "valid")
    ]  # fmt: skip
    fit(model, *rows, SETTINGS)
    return {**model.state_dict(), "metrics": evaluate(model, rows[1])}


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
        experiment = load_experiment(name, folder / "my_configs", overrides={**IN_RUNS, **changes})
        record = run_experiment(experiment).record
        results[expid] = {key: record[key] for key in ("metrics", "slices", "networks", "best_epoch", "hardware")}
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
}


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
