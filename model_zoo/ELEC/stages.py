"""ELEC's stages up to the teacher: rows to texts, encode, adapt, train the gain network. Each is cached."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from fuxictr.pytorch.models import BaseModel, MultiTaskModel

from fuxictr_llm import registry
from fuxictr_llm.common.code_digest import digest_of_code
from fuxictr_llm.common.errors import UserError, unknown
from fuxictr_llm.common.files import merged
from fuxictr_llm.common.progress import Watched
from fuxictr_llm.common.runs import Run
from fuxictr_llm.config.keys import DatasetKeys, ModelKeys
from fuxictr_llm.config.resolve import constructor_hints
from fuxictr_llm.data.loader import describe_data, make_loaders
from fuxictr_llm.data.slices import FrequencySlices
from fuxictr_llm.distillation import JointTeacher, ShuffledTeacher, Teacher
from fuxictr_llm.distillation.recovery import recovery_of
from fuxictr_llm.enhancement.anatomy import find_anatomy, tap_keys
from fuxictr_llm.host.batches import Batch, columns_of, rows_of
from fuxictr_llm.llm.texts.histories import find_histories
from fuxictr_llm.llm.texts.row_texts import RowIndex, index_rows
from fuxictr_llm.llm.vectors.encoder import unit_vectors
from fuxictr_llm.llm.vectors.store import VectorStore
from fuxictr_llm.serving.export import check_same_data, load_network
from fuxictr_llm.training.build import build
from fuxictr_llm.training.networks import Network, find_or_train, unchanged
from fuxictr_llm.training.step import TrainingStep

from . import vectors
from .config import TEACHERS, ELECConfig
from .gain import decay_apart, gain_class, train_only_added
from .head import MultiTaskTextHead, TextHead, with_texts
from .history import of_histories
from .vectors import RawVectors, RowVectors, SideBySide, placebo_of

Change = Callable[[Batch], Batch]
VectorsOfRows = RowVectors | SideBySide
# Of the settings that every experiment has, those that a text head does not follow.
NOT_OF_HEAD = {"model", "embedding_dim", "embedding_regularizer", "net_regularizer", "feature_specs"}


def encode(config: ELECConfig, run: Run) -> tuple[RowIndex, tuple[VectorStore, ...]]:
    """Which texts the rows have, and the language model's vectors of them."""
    with run.stages("texts") as stage:
        index = index_rows(config, run)
        stage["rows"] = len(index)
    tuned = config.tuning == "lora"
    adapter = _tuned(config, run, index) if tuned and not config.text_vectors else None
    return index, unit_vectors(config, run, index, adapter, tuned)


def prepare_teacher(config: ELECConfig, run: Run) -> Teacher:
    """The network that the vanilla network learns from.

    Raises:
        UserError: the given teacher, the texts or the settings do not fit the data set.
    """
    if config.teacher not in TEACHERS:
        return _given_teacher(config, run)
    if config.teacher == "self" and config.schedule == "staged":
        return Teacher(plain_network(run).model, taps=tap_keys(run.params))
    build_teacher, row_vectors, made_from = _teacher_to_train(config, run)
    taps = tap_keys(run.params)
    if config.schedule == "joint":
        return JointTeacher(TrainingStep(build_teacher(), run.params), row_vectors, taps, seed=run.params["seed"])
    starts_trained = config.start != "fresh"  # then it never ends worse than the plain backbone on validation
    network = _trained(run, "gain", build_teacher, made_from, row_vectors or unchanged, starts_trained)
    _warn_of_loss(run)
    if config.teacher == "shuffled":
        return ShuffledTeacher(network.model, row_vectors, taps, seed=config.control_seed)
    return Teacher(network.model, row_vectors, taps)


def _warn_of_loss(run: Run) -> None:
    recovery = recovery_of(run.networks, "valid", run.params["metrics"])
    if recovery and recovery.gain < 0:
        logging.warning(
            "the gain network is worse than its plain backbone on validation (%+.6f %s): what a student takes from it "
            "is regularization, not what the vectors say; compare teacher: self",
            recovery.gain,
            recovery.metric,
        )
    elif recovery and run.networks["gain"]["best_epoch"] == 0:
        logging.warning(
            "the gain network stays its plain backbone: with the vectors, no epoch was better on validation (%s); its "
            "student learns as with teacher: self",
            recovery.metric,
        )


def plain_network(run: Run) -> Network:
    """The backbone alone, trained with the run's settings: what a gain network is measured against."""
    cls = registry.find_backbone(run.params["model"])
    return _trained(run, "plain", partial(build, cls, run.feature_map, run.params), {})


def _trained(
    run: Run,
    name: str,
    make: Callable[[], BaseModel],
    made_from: dict[str, Any],
    change: Change = unchanged,
    start_counts: bool = False,
) -> Network:
    backbone = registry.find_backbone(run.params["model"])
    network = find_or_train(
        run,
        name,
        make,
        made_from,
        change=change,
        slices=FrequencySlices.from_run(run),
        leave_out=ELECConfig.__dataclass_fields__.keys() - constructor_hints(backbone).keys(),  # one value goes to both
        start_counts=start_counts,
    )
    run.networks[name] = network.facts
    return network


def _teacher_to_train(
    config: ELECConfig, run: Run
) -> tuple[Callable[[], BaseModel], VectorsOfRows | None, dict[str, Any]]:
    """What builds the teacher, the vectors that it reads, and what it is made from besides the run's settings."""
    backbone = registry.find_backbone(run.params["model"])
    if config.teacher == "self":
        return partial(build, backbone, run.feature_map, run.params), None, {}
    _check_widths(config, run, backbone)
    row_vectors, vectors_from = adapt(config, run)
    keys = ["inject", "inject_vector", "h_decay"]
    keys += ["h_dim", "h_hidden", "h_dropout"] if config.inject_vector == "joint" else []
    made_from = merged(vectors_from, {key: getattr(config, key) for key in keys})
    plain: Network | None = None
    if config.schedule == "staged":
        plain = plain_network(run)
    start = plain if config.start != "fresh" else None
    made_from |= {"gain_backbone": config.start, "start": start and start.sha256}
    cls = gain_class(backbone, config.inject)

    def make() -> BaseModel:
        model = build(cls, run.feature_map, {**run.params, "vector_width": row_vectors.width})
        if start:
            model.load_state_dict(model.state_dict() | start.model.state_dict())
            if config.start == "fixed":
                train_only_added(model)
        decay_apart(model, config.h_decay)
        return model

    return make, row_vectors, made_from


def _check_widths(config: ELECConfig, run: Run, backbone: type[BaseModel]) -> None:
    """One more column can make a representation wider: that is said before anything is computed."""
    if config.inject != "input" or not config.beta or config.representation_loss == "hint":
        return
    vanilla = build(backbone, run.feature_map, run.params)
    gain = build(gain_class(backbone, config.inject), run.feature_map, {**run.params, "vector_width": config.h_dim})
    taps = tap_keys(run.params)
    widths = [find_anatomy(model, **taps).representation_width for model in (vanilla, gain)]
    if all(widths) and widths[0] != widths[1]:
        raise UserError(
            f"inject: input makes the representation of {backbone.__name__} {widths[1]} wide instead of {widths[0]}; "
            "set representation_loss: hint, or beta: 0, or another inject"
        )


def _given_teacher(config: ELECConfig, run: Run) -> Teacher:
    """A run or an export as the teacher."""
    if config.schedule == "joint":
        raise UserError(f"schedule: joint trains its teacher, and {config.teacher!r} is trained; set schedule: staged")
    if not Path(config.teacher).exists() and len(Path(config.teacher).parts) == 1:
        raise unknown("teacher", config.teacher, [*TEACHERS, "a run or an export of one"])
    model, settings = load_network(config.teacher, run.params["gpu"])
    data = describe_data(run.params, run.data_dir)
    check_same_data(settings, data, run.feature_map, f"teacher {config.teacher!r}")
    run.networks["teacher"] = {
        "source": config.teacher,
        "weights_sha256": settings["weights_sha256"],
        "metrics": settings["source"]["metrics"],
    }
    return Teacher(model, taps=tap_keys(settings["params"]))


def adapt(config: ELECConfig, run: Run) -> tuple[VectorsOfRows, dict[str, Any]]:
    """The vectors of rows for the gain network, and what they are made from.

    A text head is trained in every case: how well it does is what the text alone can do.
    """
    index, stores = encode(config, run)
    if config.h != "llm":
        stores = tuple(placebo_of(stores, config.h, config.control_seed))
    raw = vectors.raw_vectors(index, stores)
    made_from = made_from_texts(index, stores)
    head = _head(config, run, raw, made_from)
    run.networks["text"] = head.facts
    if config.inject_vector == "h":
        fit, vectors_from = _of_heads(config, run, raw, made_from, head)
    else:
        fit, vectors_from = partial(vectors.of_s, raw, config.s_dim), {"s_dim": config.s_dim}
    with run.stages("vectors of rows", rows=len(index)):
        store = vectors.stored(merged(made_from, vectors_from), len(index), fit)
        row_vectors = vectors.in_store(index, store)
        if config.text_history is None:
            return row_vectors, {"vectors": store.sha256}
        told, digest = _history_vectors(config, config.text_history, run, raw, made_from)
    return vectors.SideBySide(row_vectors, told), {"vectors": store.sha256, "history": digest}


def _history_vectors(
    config: ELECConfig, asked: dict[str, str], run: Run, raw: RawVectors, made_from: dict[str, Any]
) -> tuple[RowVectors, str]:
    """The vectors of the rows' histories, and a digest of them."""
    histories = find_histories(asked, run, raw.index)
    history_from = {"s_dim": config.s_dim, "histories": histories.sha256}
    history_from["history_code"] = digest_of_code([of_histories.__module__])
    fit = partial(of_histories, histories, raw, config.s_dim)
    store = vectors.stored(merged(made_from, history_from), len(histories), fit)
    run.notes["text_history"] = {"rows": len(histories), "sha256": histories.sha256, "vectors": store.sha256}
    return vectors.in_store(histories, store), store.sha256


def _of_heads(
    config: ELECConfig, run: Run, raw: RawVectors, made_from: dict[str, Any], head: Network
) -> tuple[Callable[[], Callable[[torch.Tensor], torch.Tensor]], dict[str, Any]]:
    """What gives h of rows, and what it is made from."""
    folds = [_head(config, run, raw, made_from, fold) for fold in range(config.folds)]
    vectors_from = {"h_dim": config.h_dim, "heads": [network.sha256 for network in (head, *folds)]}
    if folds:
        return partial(vectors.of_heads, head.model, [network.model for network in folds], raw), vectors_from
    return partial(vectors.of_head, head.model, raw), vectors_from


def made_from_texts(index: RowIndex, stores: Sequence[VectorStore]) -> dict[str, Any]:
    """The texts and vectors, as part of the key of all that is learnt from them."""
    return {
        "units": {unit.name: [unit.fields, store.sha256] for unit, store in zip(index.units, stores, strict=True)},
        "rows_sha256": index.sha256,
        "vectors_version": vectors.VERSION,
    }


def _head(config: ELECConfig, run: Run, raw: RawVectors, made_from: dict[str, Any], fold: int | None = None) -> Network:
    """A text head, trained on the rows of all folds but one; without `fold` on all."""
    feature_map = with_texts(run.feature_map, len(raw.stores), raw.stores[0].dim)
    read = {*feature_map.features, *feature_map.labels}
    several = issubclass(registry.find_backbone(run.params["model"]), MultiTaskModel)
    head = MultiTaskTextHead if several else TextHead
    keys = ("h_hidden", "h_dim", "h_dropout")
    shape = {key: getattr(config, key) for key in keys}
    trained_on = {"head": head.__name__, "fold": None if fold is None else [fold, config.folds]}

    def change(batch: Batch) -> Batch:
        return {name: column for name, column in raw(batch).items() if name in read}

    def keep(batch: Batch) -> torch.Tensor:
        folds = vectors.fold_of(raw.index.positions[raw.index.row_of(columns_of(batch))], config.folds)
        return torch.ne(folds, cast(int, fold))

    return find_or_train(
        run,
        "text" if fold is None else f"text, fold {fold + 1} of {config.folds}",
        lambda: build(head, feature_map, {**run.params, **shape, "units": len(raw.stores)}),
        merged(made_from, shape, trained_on),
        change=change,
        keep=None if fold is None else keep,
        leave_out={*run.params} - ({*ModelKeys.__annotations__, *DatasetKeys.__annotations__} - NOT_OF_HEAD),
    )


def _tuned(config: ELECConfig, run: Run, index: RowIndex) -> Path:
    """The adapter of the language model, tuned on clicks."""
    from .click_tuning import tune_on_clicks

    train, valid = (_clicks(run, index, rows) for rows in make_loaders(run.feature_map, run.params, "train"))
    with run.stages("tune") as stage:
        adapter, facts = tune_on_clicks(config, run.params["gpu"], index.units, train, valid)
        stage |= {"rows": facts["rows"], "made_in": facts.get("seconds"), "tokens_read": facts.get("tokens_read")}
    run.notes["click_tuning"] = facts
    return adapter


def _clicks(run: Run, index: RowIndex, batches: Any) -> Any:
    from .click_tuning import ClickRows

    rows, clicks = [], []
    for batch in Watched(batches, "texts of clicks", True, rows_of):
        rows.append(index.row_of(batch))
        clicks.append(batch[run.feature_map.labels[0]])
    return ClickRows(index.positions[torch.cat(rows)].numpy(), torch.cat(clicks).numpy().astype(np.float32))
