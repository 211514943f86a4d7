"""Trainings that one process and two processes of torchrun must agree on: see cases_of_devices.py."""

from itertools import islice
from pathlib import Path

import numpy as np
import torch

from fuxictr_llm.common.processes import from_main
from fuxictr_llm.data.in_memory import InMemoryLoader
from fuxictr_llm.data.loader import Histories, Items, LongSequenceLoader
from fuxictr_llm.data.shares import own_shares
from fuxictr_llm.distillation import JointTeacher, ShuffledTeacher, Teacher
from fuxictr_llm.enhancement.model import enhance
from fuxictr_llm.model_zoo.LLaCTR.vector_file import write_field_vectors
from fuxictr_llm.registry import find_backbone, find_method
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
