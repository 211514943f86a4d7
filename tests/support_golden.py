"""What `make_golden.py` stores of FuxiCTR's own classes, and the tests of ours compare: one case is a class with settings.

`golden/fuxictr.json` holds what is read (versions, settings, feature maps), `golden/fuxictr.npz` the arrays.
"""

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import seed_everything
from torch import Tensor

from fuxictr_llm.diagnosis.tiny import train
from fuxictr_llm.host.columns import as_tuples, make_feature_map
from matrix_cells import predictions

FOLDER = Path(__file__).parent / "golden"
DESCRIPTION, ARRAYS = FOLDER / "fuxictr.json", FOLDER / "fuxictr.npz"
STEP = 50  # rows of a batch


def build(cls: type[BaseModel], described: dict[str, Any], settings: dict[str, Any], seed: int = 1) -> BaseModel:
    """A model by nothing but the class's own constructor, after seeding everything."""
    seed_everything(seed)
    return cls(make_feature_map(described, "golden"), **as_tuples(settings, cls))


def observe(model: BaseModel, batches: list[dict[str, Tensor]]) -> dict[str, np.ndarray]:
    """What a model has and computes before and after a few steps of training, by name; its embeddings are enlarged."""
    before = summaries(model)
    enlarge_embeddings(model)
    first = predictions(model, batches).numpy()
    losses = np.array(train(model, batches), np.float32)
    return {
        "weights": names_and_shapes(model),
        "initial_weights": before,
        "initial_predictions": first,
        "losses": losses,
        "trained_weights": summaries(model),
        "trained_predictions": predictions(model, batches).numpy(),
    }


@torch.no_grad()
def enlarge_embeddings(model: BaseModel) -> None:
    """FuxiCTR draws embeddings of size 1e-4: the products of two of them would not show in a prediction."""
    for parameter in model.parameters():
        size = parameter.double().square().mean().sqrt().item()
        if 0 < size < 1e-3:
            parameter.mul_(0.3 / size)


def names_and_shapes(model: BaseModel) -> np.ndarray:
    """`name [shape]` of each entry of the state dict, sorted."""
    return np.array([f"{name} {list(value.shape)}" for name, value in sorted(model.state_dict().items())])


def summaries(model: BaseModel) -> np.ndarray:
    """`[entries, 3]`: for each entry of the state dict its mean, its mean absolute value, and a mean that knows order."""
    rows = []
    for _, value in sorted(model.state_dict().items()):
        flat = value.detach().double().flatten()
        wave = torch.cos(torch.arange(len(flat), dtype=torch.float64))
        rows.append([flat.mean().item(), flat.abs().mean().item(), (flat * wave).mean().item()])
    return np.array(rows, np.float32)


def in_batches(columns: dict[str, np.ndarray]) -> list[dict[str, Tensor]]:
    """The rows in batches of `STEP`."""
    rows = len(next(iter(columns.values())))
    cuts = [slice(start, start + STEP) for start in range(0, rows, STEP)]
    return [{name: torch.from_numpy(column[cut].copy()) for name, column in columns.items()} for cut in cuts]


@functools.cache
def description() -> dict[str, Any]:
    """Versions, feature maps, and for each case its class, settings and feature map."""
    return json.loads(DESCRIPTION.read_text(encoding="utf-8"))


@functools.cache
def arrays() -> dict[str, dict[str, np.ndarray]]:
    """The arrays of each case, and the columns of each feature map's data."""
    groups: dict[str, dict[str, np.ndarray]] = {}
    with np.load(ARRAYS) as stored:
        for key in stored.files:
            group, _, name = key.rpartition("/")
            groups.setdefault(group, {})[name] = stored[key]
    return groups
