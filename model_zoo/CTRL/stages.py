"""CTRL's stages before clicks are learnt: texts, encode, align. Each is cached."""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fuxictr_llm import registry
from fuxictr_llm.common import cache
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import merged
from fuxictr_llm.common.processes import under_torchrun
from fuxictr_llm.common.progress import Watched
from fuxictr_llm.common.runs import Run
from fuxictr_llm.data.loader import make_loaders
from fuxictr_llm.enhancement import enhance
from fuxictr_llm.host.batches import rows_of
from fuxictr_llm.llm.texts.row_texts import RowIndex, index_rows
from fuxictr_llm.llm.vectors.encoder import unit_vectors
from fuxictr_llm.llm.vectors.standardized import Standardized, some_of
from fuxictr_llm.llm.vectors.store import VectorStore
from fuxictr_llm.training.build import build
from fuxictr_llm.training.networks import identity_of

from .alignment import Alignment, align
from .config import CTRLConfig

KIND, FILE = "aligned_backbones", "backbone.safetensors"
# Raise it when the same settings would give other weights.
VERSION = 1
# Settings of the training on clicks, on which the alignment does not depend.
OF_CLICKS = (
    "learning_rate",
    "epochs",
    "monitor",
    "monitor_mode",
    "metrics",
    "embedding_regularizer",
    "net_regularizer",
)
# How texts become vectors: these have digests of their own.
OF_TEXTS = ("value_texts", "text_vectors", "encoder", "ray_workers", "language_model", "llm_dtype", "llm_pooling")


def encode(config: CTRLConfig, run: Run) -> tuple[RowIndex, tuple[VectorStore, ...]]:
    """Which texts the rows have, and the language model's vectors of them."""
    with run.stages("texts") as stage:
        index = index_rows(config, run)
        stage["rows"] = len(index)
    return index, unit_vectors(config, run, index)


def aligned_backbone(config: CTRLConfig, run: Run) -> Path:
    """The file with the state of the aligned backbone.

    Raises:
        UserError: the rows have no texts, the backbone shows no representation, or several processes run.
    """
    if under_torchrun():
        raise UserError("CTRL aligns in one process; start it without torchrun")
    index, stores = encode(config, run)
    texts = RowTexts(index, stores, config.texts, config.control_seed)
    made_from = _made_from(config, run, index, stores)

    def make() -> tuple[Path, dict[str, Any]]:
        started = time.perf_counter()
        state, losses = _align(config, run, texts)
        facts = {"losses": losses, "seconds": round(time.perf_counter() - started, 3)}
        return cache.save(KIND, made_from, FILE, lambda path: save_file(state, path), facts)

    with run.stages("train alignment") as stage:
        path, manifest = cache.find_or_make(KIND, made_from, FILE, make)
        stage["made_in"] = manifest["seconds"]
    rows = config.align_batch_size
    note = {"losses": manifest["losses"], "log_rows": round(math.log(rows), 4), "sha256": manifest["sha256"]}
    run.notes["alignment"] = note
    logging.info(
        "Alignment: mean loss by epoch %s; guessing among %d rows has %.4f", note["losses"], rows, math.log(rows)
    )
    return path


class RowTexts:
    """The text vectors of a batch's rows, standardized, those of its units side by side; or a control's.

    Args:
        index: which texts a row has.
        stores: the vectors of each unit's texts.
        kind: `llm`, `shuffled` or `noise`.
        seed: of a control.
    """

    def __init__(self, index: RowIndex, stores: Sequence[VectorStore], kind: str = "llm", seed: int = 0):
        fitted = some_of(index.train_rows.nonzero().squeeze(-1))
        self.index, self.kind = index, kind
        self.units = [
            Standardized(store, index.positions[fitted, unit].long().unique(), texts.empty)
            for unit, (store, texts) in enumerate(zip(stores, index.units, strict=True))
        ]
        self.width = sum(unit.dim for unit in self.units)
        self._draw = torch.Generator().manual_seed(seed)
        self._orders = [torch.randperm(len(store), generator=self._draw) for store in stores]

    def __call__(self, columns: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """`[N, S]`, and the index of each row, which rows with the same texts may share."""
        rows = self.index.row_of(columns)
        if self.kind == "noise":
            return torch.randn(len(rows), self.width, generator=self._draw), rows
        positions = self.index.positions[rows].long()
        places = [positions[:, unit] for unit in range(len(self.units))]
        if self.kind == "shuffled":
            places = [order[place] for order, place in zip(self._orders, places, strict=True)]
        return torch.cat([unit.gather(place) for unit, place in zip(self.units, places, strict=True)], dim=1), rows


def _made_from(config: CTRLConfig, run: Run, index: RowIndex, stores: Sequence[VectorStore]) -> dict[str, Any]:
    own = {key: value for key, value in asdict(config).items() if key not in OF_TEXTS}
    return merged(
        identity_of(run, leave_out={*OF_CLICKS, *CTRLConfig.__dataclass_fields__}),
        {"alignment": own, "rows_sha256": index.sha256, "vectors": [store.sha256 for store in stores]},
        {"alignment_version": VERSION},
    )


def _align(config: CTRLConfig, run: Run, texts: RowTexts) -> tuple[dict[str, Tensor], list[float]]:
    """The state of the aligned backbone, and the mean loss of each epoch."""
    params = {**run.params, "batch_size": config.align_batch_size}
    cls = enhance(registry.find_backbone(params["model"]), Alignment)
    model = build(cls, run.feature_map, {**params, "text_width": texts.width})
    rows = Watched(make_loaders(run.feature_map, params, "train")[0], "alignment", params["verbose"] > 0, rows_of)
    losses = align(model, rows, texts, config.align_epochs, config.align_learning_rate, config.align_warmup)
    if not all(map(math.isfinite, losses)):
        raise UserError(f"the alignment diverged (losses {losses}); lower align_learning_rate")
    # Fields may share a tensor; safetensors needs each in memory of its own.
    state = {name: value.cpu().clone().contiguous() for name, value in model.backbone_state_dict().items()}
    return state, [round(loss, 6) for loss in losses]


def read_state(path: str | Path) -> dict[str, Tensor]:
    """What `aligned_backbone` wrote."""
    return load_file(path)
