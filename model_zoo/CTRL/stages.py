"""CTRL's stages before clicks are learnt: texts, encode, align. Each is cached."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fuxictr_llm import registry
from fuxictr_llm.common import cache
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import OTHER_CACHE, merged, writable_dir
from fuxictr_llm.common.progress import Watched
from fuxictr_llm.common.runs import Run
from fuxictr_llm.config.language_models import LoraKeys
from fuxictr_llm.data.loader import make_loaders
from fuxictr_llm.enhancement import enhance
from fuxictr_llm.host.batches import rows_of
from fuxictr_llm.llm.texts.row_texts import RowIndex, index_rows
from fuxictr_llm.llm.vectors.encoder import TextEncoder, unit_vectors
from fuxictr_llm.llm.vectors.standardized import Standardized, some_of
from fuxictr_llm.llm.vectors.store import VectorStore
from fuxictr_llm.training.build import build
from fuxictr_llm.training.checkpoints import Checkpoints
from fuxictr_llm.training.networks import identity_of

from .alignment import Alignment
from .config import CTRLConfig
from .training import AlignmentTraining, TextsOfRows

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

    Of torchrun's processes, the main one aligns, and the others wait.

    Raises:
        UserError: the rows have no texts, or the backbone shows no representation.
    """
    index, stores = encode(config, run)
    made_from = _made_from(config, run, index, stores)

    def make() -> tuple[Path, dict[str, Any]]:
        started = time.perf_counter()
        place = cache.entry_dir(KIND, made_from)
        writable_dir(place.parent, OTHER_CACHE)
        with Checkpoints.of_training(place.with_name(f"{place.name}.checkpoint"), made_from, run.params) as checkpoints:
            state, losses = _align(config, run, RowTexts(config, run, index, stores), checkpoints)
            facts = {"losses": losses, "seconds": round(time.perf_counter() - started, 3)}
            entry = cache.save(KIND, made_from, FILE, lambda path: save_file(state, path), facts)
            checkpoints.remove()
        return entry

    with run.stages("train alignment" if config.tuning == "frozen" else "tune and align") as stage:
        path, manifest = cache.find_or_make(KIND, made_from, FILE, make)
        stage["made_in"] = manifest["seconds"]
    rows = config.align_batch_size
    note = {"losses": manifest["losses"], "log_rows": round(math.log(rows), 4), "sha256": manifest["sha256"]}
    run.notes["alignment"] = note
    logging.info(
        "Alignment: mean loss by epoch %s; guessing among %d rows has %.4f", note["losses"], rows, math.log(rows)
    )
    return path


class RowTexts(TextsOfRows):
    """The text vectors of a batch's rows, standardized, those of its units side by side; or a control's.

    Args:
        config: which texts, and whether the language model is tuned.
        run: the experiment under way.
        index: which texts a row has.
        stores: the vectors of each unit's texts.
    """

    def __init__(self, config: CTRLConfig, run: Run, index: RowIndex, stores: Sequence[VectorStore]):
        fitted = some_of(index.train_rows.nonzero().squeeze(-1))
        self.index, self.kind = index, config.texts
        self.units = [
            Standardized(store, index.positions[fitted, unit].long().unique(), texts.empty)
            for unit, (store, texts) in enumerate(zip(stores, index.units, strict=True))
        ]
        self.width = sum(unit.dim for unit in self.units)
        self._draw = torch.Generator().manual_seed(config.control_seed)
        self._orders = [torch.randperm(len(store), generator=self._draw) for store in stores]
        self._tuned: Any = None
        if config.tuning == "lora":
            # Heavy libraries are imported only where something has to be asked of a language model.
            from .tuned_texts import TunedTexts

            model = TextEncoder(config, run.params["gpu"]).model
            self._tuned = TunedTexts(model, index.units, self.units, config, run.params["seed"])

    def __call__(self, columns: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        rows = self.index.row_of(columns)
        if self.kind == "noise":
            return torch.randn(len(rows), self.width, generator=self._draw), rows
        positions = self.index.positions[rows].long()
        places = [positions[:, unit] for unit in range(len(self.units))]
        if self.kind == "shuffled":
            places = [order[place] for order, place in zip(self._orders, places, strict=True)]
        return torch.cat([self._vectors(unit, place) for unit, place in enumerate(places)], dim=1), rows

    def _vectors(self, unit: int, positions: Tensor) -> Tensor:
        return self._tuned(unit, positions) if self._tuned else self.units[unit].gather(positions)

    def parameters(self) -> list[nn.Parameter]:
        return [*self._tuned.named_parameters().values()] if self._tuned else []

    def training_state(self) -> dict[str, Any]:
        return {"draw": self._draw.get_state(), "lora": self._tuned.named_parameters() if self._tuned else {}}

    def load_training_state(self, state: Mapping[str, Any]) -> None:
        self._draw.set_state(state["draw"])
        if self._tuned:
            self._tuned.load(state["lora"])


def _made_from(config: CTRLConfig, run: Run, index: RowIndex, stores: Sequence[VectorStore]) -> dict[str, Any]:
    own = {key: value for key, value in asdict(config).items() if key not in (*OF_TEXTS, *LoraKeys.__annotations__)}
    identity = identity_of(run, leave_out={*OF_CLICKS, *CTRLConfig.__dataclass_fields__})
    identity.pop("processes", None)  # one alone aligns
    lora = {}
    if config.tuning == "lora":
        settings = {key: value for key, value in asdict(config).items() if key in LoraKeys.__annotations__}
        lora = {"lora": settings, "encoder": TextEncoder(config, run.params["gpu"]).settings}
    return merged(
        identity,
        {"alignment": own, "rows_sha256": index.sha256, "vectors": [store.sha256 for store in stores]},
        lora,
        {"alignment_version": VERSION},
    )


def _align(
    config: CTRLConfig, run: Run, texts: RowTexts, checkpoints: Checkpoints
) -> tuple[dict[str, Tensor], list[float]]:
    """The state of the aligned backbone, and the mean loss of each epoch."""
    params = {**run.params, "batch_size": config.align_batch_size}
    cls = enhance(registry.find_backbone(params["model"]), Alignment)
    model = build(cls, run.feature_map, {**params, "text_width": texts.width})
    rows = Watched(make_loaders(run.feature_map, params, "train")[0], "alignment", params["verbose"] > 0, rows_of)
    training = AlignmentTraining(
        model, rows, texts, config.align_epochs, config.align_learning_rate, config.align_warmup
    )
    losses = training.run(checkpoints)
    if not all(map(math.isfinite, losses)):
        checkpoints.remove()  # from there, it would only end so again
        raise UserError(f"the alignment diverged (losses {losses}); lower align_learning_rate")
    # Fields may share a tensor; safetensors needs each in memory of its own.
    state = {name: value.cpu().clone().contiguous() for name, value in model.backbone_state_dict().items()}
    return state, [round(loss, 6) for loss in losses]


def read_state(path: str | Path) -> dict[str, Tensor]:
    """What `aligned_backbone` wrote."""
    return load_file(path)
