"""Networks that a run trains besides its own model, as a teacher: cached under a digest of all that they depend on."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor

from fuxictr_llm.common import cache as store
from fuxictr_llm.common.code_digest import digest_of_code, modules_of
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import OTHER_CACHE, digest_of_file, merged, own_folder, writable_dir
from fuxictr_llm.common.processes import from_main, of_processes
from fuxictr_llm.common.runs import Run, versions
from fuxictr_llm.config.resolve import NOT_IN_IDENTITY
from fuxictr_llm.data.in_memory import starts_anywhere
from fuxictr_llm.data.loader import describe_data, make_loaders
from fuxictr_llm.data.shares import share_of
from fuxictr_llm.data.slices import FrequencySlices
from fuxictr_llm.host.batches import Batch, rows_of, some_rows, with_columns
from fuxictr_llm.registry import find_backbone, method_modules
from fuxictr_llm.training.checkpoints import Checkpoints
from fuxictr_llm.training.devices import evaluate
from fuxictr_llm.training.loop import fit

KIND = "networks"
FILE = "weights.model"
# Settings with the paths of files; `describe_data` has the digests of their content.
PLACES = ("model_root", "data_root", "train_data", "valid_data", "test_data", "raw_data")
# Raised when the same settings would give other weights.
VERSION = 2


@dataclass(frozen=True)
class Network:
    """A trained network.

    Attributes:
        model: has the weights of the best epoch.
        facts: `metrics` by split, `best_epoch`, `epochs` and `slices`.
        sha256: digest of its weights.
    """

    model: BaseModel
    facts: dict[str, Any]
    sha256: str


def unchanged(batch: Batch) -> Batch:
    """The same batch in new dicts."""
    return with_columns(batch, {})


class ChangedBatches:
    """A loader whose batches are changed, and some of their rows left out.

    Args:
        loader: one of FuxiCTR's form.
        change: batch -> the batch in its place.
        keep: batch -> which of its rows remain, bool `[B]`; None: all. FuxiCTR needs as many batches as `len` says, so
            a batch of which nothing remains is replaced by the one before it.
    """

    def __init__(self, loader: Any, change: Callable[[Batch], Batch], keep: Callable[[Batch], Tensor] | None = None):
        self.loader, self.change, self.keep = loader, change, keep
        self.num_samples, self.num_blocks = loader.num_samples, loader.num_blocks
        self._skipped = 0

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def starts_anywhere(self) -> bool:
        return starts_anywhere(self.loader)

    def start_at(self, epoch: int, batch: int) -> None:
        """As the loader's; where rows are left out, the batches before are read, too: one may have to stand in."""
        self._skipped = batch if self.keep is not None else 0
        self.loader.start_at(epoch, batch - self._skipped)

    def __iter__(self) -> Iterator[Batch]:
        return map(self.change, self._kept())

    def shares(self, index: int, count: int) -> Iterator[Batch]:
        """As the loader's; where rows are left out, of those that remain."""
        if self.keep is None:
            return map(self.change, self.loader.shares(index, count))
        return (self.change(some_rows(batch, share_of(rows_of(batch), index, count))) for batch in self._kept())

    def batches_in_turn(self, index: int, count: int) -> Iterator[Batch]:
        """As the loader's."""
        if self.keep is None:
            return map(self.change, self.loader.batches_in_turn(index, count))
        return islice(self, index, None, count)

    def _kept(self) -> Iterator[Batch]:
        last, skipped, self._skipped = None, self._skipped, 0
        for index, batch in enumerate(self.loader):
            if self.keep is not None:
                kept = self.keep(batch)
                batch = {name: column[kept] for name, column in batch.items()} if kept.any() else last
                if batch is None:
                    raise UserError(f"nothing is left of the first batch of {len(kept)} rows; give a larger batch_size")
                last = batch
            if index >= skipped:
                yield batch


AFTER_TRAINING = ("cold_values", "cold_fields", "cold_catalog")  # what is made for the run's own model alone


def find_or_train(
    run: Run,
    name: str,
    build: Callable[[], BaseModel],
    made_from: Mapping[str, Any],
    change: Callable[[Batch], Batch] = unchanged,
    keep: Callable[[Batch], Tensor] | None = None,
    slices: FrequencySlices | None = None,
    leave_out: Iterable[str] = (),
    start_counts: bool = False,
) -> Network:
    """A network trained with the run's settings, or taken from the cache; timed as the stage `train <name>`.

    Args:
        run: the experiment in progress.
        name: what the network is, in words.
        build: makes it with fresh weights, after seeding everything.
        made_from: what it depends on besides the run's settings and data.
        change: batch of the run's loaders -> batch of the network.
        keep: batch -> the rows that it is trained on, bool `[B]`; None: all.
        slices: of the test split, to measure it on.
        leave_out: settings of the run that it does not depend on.
        start_counts: as for `training.loop.fit`; it follows from `made_from`.

    Raises:
        UserError: as for `training.loop.fit`.
    """
    identity = merged(identity_of(run, leave_out), {"network": name}, made_from)
    with run.stages(f"train {name}") as stage:
        trained_here = []  # empty where another process has trained it meanwhile

        def make() -> tuple[Path, dict[str, Any]]:
            trained_here.append(True)
            return _train(run, build(), identity, (change, keep), slices, start_counts)

        path, manifest = store.find_or_make(KIND, identity, FILE, make, together=True)
        done = {"epochs": manifest["epochs"], "rows": manifest["rows"] * manifest["epochs"]}
        stage |= done if trained_here else {"cached": True, "made_in": manifest.get("seconds")}
        model = build()
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    facts = {key: value for key, value in manifest.items() if key not in ("made_from", "sha256")}
    if slices and (facts.get("slices") or {}).get("by") != slices.column and run.params.get("test_data"):
        test_rows = make_loaders(run.feature_map, run.params, "test")
        facts["slices"] = slices.of_model(model, ChangedBatches(test_rows, change))
    return Network(model.eval(), facts, manifest["sha256"])


def identity_of(run: Run, leave_out: Iterable[str]) -> dict[str, Any]:
    """All of a run that its networks depend on."""
    params = _settings(run.params, leave_out)
    backbone = find_backbone(params["model"]) if "model" in params else None
    code = [__name__, *(modules_of(backbone) if backbone else ())]
    code += method_modules(run.params["method"]) if run.params.get("method") else []
    return {
        "params": params,
        "code": digest_of_code(code),
        "data": describe_data(run.params, run.data_dir)["sha256"],
        "columns": run.feature_map.features,
        "labels": run.feature_map.labels,
        "pretrained": _digests_of_vectors(run),
        "device": "gpu" if run.params["gpu"] >= 0 else "cpu",
        "versions": {package: version for package, version in versions().items() if package in ("torch", "fuxictr")},
        "version": VERSION,
        **of_processes(),
    }


def _digests_of_vectors(run: Run) -> dict[str, str]:
    """Column -> digest of the file that has its vectors."""
    named = {name: spec.get("pretrained_emb") for name, spec in run.feature_map.features.items()}
    paths = {name: Path(run.data_dir, file) for name, file in named.items() if file}  # as FuxiCTR finds them
    return {name: digest_of_file(path) for name, path in paths.items() if path.is_file()}


def _settings(params: Mapping[str, Any], leave_out: Iterable[str]) -> dict[str, Any]:
    without = {*NOT_IN_IDENTITY, *PLACES, *AFTER_TRAINING, *leave_out, "method"}
    return {key: value for key, value in params.items() if key not in without}


def _train(
    run: Run,
    model: BaseModel,
    identity: Mapping[str, Any],
    batches: tuple[Callable[[Batch], Batch], Callable[[Batch], Tensor] | None],
    slices: FrequencySlices | None,
    start_counts: bool,
) -> tuple[Path, dict[str, Any]]:
    (change, keep), params, started = batches, run.params, time.perf_counter()
    train_rows, valid_rows = make_loaders(run.feature_map, params, "train")
    place = store.entry_dir(KIND, identity)
    writable_dir(place.parent, OTHER_CACHE)
    checkpoints = Checkpoints.of_training(place.with_name(f"{place.name}.checkpoint"), identity, params)
    with own_folder(place) as folder, checkpoints:
        model.checkpoint = str((folder / FILE).absolute())
        rows = ChangedBatches(train_rows, change, keep), ChangedBatches(valid_rows, change)
        done = fit(model, *rows, params, checkpoints, start_counts=start_counts)
        facts = {"rows": train_rows.num_samples, "epochs": model._epoch_index + 1, "best_epoch": done.best_epoch}
        del train_rows, rows
        facts |= measure(run, model, valid_rows, change, slices)
        facts["seconds"] = round(done.seconds_before + time.perf_counter() - started, 3)
        save = partial(store.save, KIND, identity, FILE, lambda path: model.save_weights(str(path)), facts)
        entry = from_main(save)
        checkpoints.remove()
    return entry


def measure(
    run: Run,
    model: BaseModel,
    valid_rows: Any,
    change: Callable[[Batch], Batch] = unchanged,
    slices: FrequencySlices | None = None,
) -> dict[str, Any]:
    """Metrics of a trained network on valid and test, and on slices of test, as the run measures its own model."""
    metrics = {"valid": evaluate(model, ChangedBatches(valid_rows, change), "validation"), "test": {}}
    facts: dict[str, Any] = {"metrics": metrics}
    if run.params.get("test_data"):
        test_rows = ChangedBatches(make_loaders(run.feature_map, run.params, "test"), change)
        metrics["test"] = evaluate(model, test_rows, "test")
        facts["slices"] = slices and slices.of_model(model, test_rows)
    return facts
