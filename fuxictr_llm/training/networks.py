"""Networks that are trained on the way to a run's own, a teacher say: kept in the cache, found by what went in."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor

from fuxictr_llm.common import cache as store
from fuxictr_llm.common.code_digest import digest_of_code, modules_of
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import OTHER_CACHE, digest_of_file, merged, own_folder, writable_dir
from fuxictr_llm.common.runs import versions
from fuxictr_llm.config.resolve import NOT_IN_IDENTITY
from fuxictr_llm.data.loader import describe_data, make_loaders
from fuxictr_llm.data.slices import FrequencySlices
from fuxictr_llm.host.batches import with_columns
from fuxictr_llm.registry import find_backbone, method_modules
from fuxictr_llm.training.fit import fit

KIND = "networks"
FILE = "weights.model"
# Where files lie, which says nothing about what is in them: `describe_data` has the digests.
PLACES = ("model_root", "data_root", "train_data", "valid_data", "test_data", "raw_data")
# Raise it when the same settings would give other weights.
VERSION = 2

Batch = dict[str, Tensor]


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
    """The batch as it is, of either form, in dicts of its own."""
    return with_columns(batch, {})


class Seeing:
    """A loader whose batches are changed on their way.

    Args:
        loader: one of FuxiCTR's form.
        change: batch -> what stands in its place.
        keep: batch -> which of its rows are left, bool `[B]`; None leaves all. FuxiCTR counts on as many batches as
            the loader says, so the batch before stands in for one of which nothing is left.
    """

    def __init__(self, loader: Any, change: Callable[[Batch], Batch], keep: Callable[[Batch], Tensor] | None = None):
        self.loader, self.change, self.keep = loader, change, keep
        self.num_samples, self.num_blocks = loader.num_samples, loader.num_blocks

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        last = None
        for batch in self.loader:
            if self.keep is not None:
                kept = self.keep(batch)
                batch = {name: column[kept] for name, column in batch.items()} if kept.any() else last
                if batch is None:
                    raise UserError(f"nothing is left of the first batch of {len(kept)} rows; give a larger batch_size")
                last = batch
            yield self.change(batch)


def find_or_train(
    run: Any,
    name: str,
    build: Callable[[], BaseModel],
    made_from: Mapping[str, Any],
    change: Callable[[Batch], Batch] = unchanged,
    keep: Callable[[Batch], Tensor] | None = None,
    slices: FrequencySlices | None = None,
    leave_out: Iterable[str] = (),
) -> Network:
    """A network as the run's settings train it, from the cache where it is there; timed as the stage `train <name>`.

    Args:
        run: the experiment under way.
        name: what the network is, in words.
        build: makes it with fresh weights, and seeds everything first.
        made_from: what decides about it besides the run's settings and data.
        change: what its batches are, given those of the run's loaders.
        keep: which rows of a train batch it is trained on; None: all.
        slices: of the test split, on which it is measured too.
        leave_out: settings of the run that do not matter for it.

    Raises:
        UserError: as training.
    """
    identity = merged(_identity(run, leave_out), {"network": name}, made_from)
    with run.stages(f"train {name}") as stage:
        here = []  # or in another process, which is waited for

        def make() -> tuple[Path, dict[str, Any]]:
            here.append(True)
            return _train(run, build(), identity, (change, keep), slices)

        path, manifest = store.find_or_make(KIND, identity, FILE, make)
        done = {"epochs": manifest["epochs"], "rows": manifest["rows"] * manifest["epochs"]}
        stage |= done if here else {"cached": True, "made_in": manifest.get("seconds")}
        model = build()
        model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    facts = {key: value for key, value in manifest.items() if key not in ("made_from", "sha256")}
    if slices and (facts.get("slices") or {}).get("by") != slices.column and run.params.get("test_data"):
        test_rows = make_loaders(run.feature_map, run.params, "test")
        facts["slices"] = slices.of_model(model, Seeing(test_rows, change))
    return Network(model.eval(), facts, manifest["sha256"])


def _identity(run: Any, leave_out: Iterable[str]) -> dict[str, Any]:
    """What decides about any network that is trained in a run."""
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
    }


def _digests_of_vectors(run: Any) -> dict[str, str]:
    """Of the files that columns have their vectors from: a name says nothing about what is in it."""
    named = {name: spec.get("pretrained_emb") for name, spec in run.feature_map.features.items()}
    paths = {name: Path(run.data_dir, file) for name, file in named.items() if file}  # as FuxiCTR finds them
    return {name: digest_of_file(path) for name, path in paths.items() if path.is_file()}


def _settings(params: Mapping[str, Any], leave_out: Iterable[str]) -> dict[str, Any]:
    without = {*NOT_IN_IDENTITY, *PLACES, *leave_out, "method"}
    return {key: value for key, value in params.items() if key not in without}


def _train(
    run: Any,
    model: BaseModel,
    identity: Mapping[str, Any],
    seen: tuple[Callable[[Batch], Batch], Callable[[Batch], Tensor] | None],
    slices: FrequencySlices | None,
) -> tuple[Path, dict[str, Any]]:
    (change, keep), params, started = seen, run.params, time.perf_counter()
    train_rows, valid_rows = make_loaders(run.feature_map, params, "train")
    place = store.entry_dir(KIND, identity)
    writable_dir(place.parent, OTHER_CACHE)
    with own_folder(place) as folder:
        model.checkpoint = str((folder / FILE).absolute())
        best_epoch = fit(model, Seeing(train_rows, change, keep), Seeing(valid_rows, change), params)
    facts = {"rows": train_rows.num_samples, "epochs": model._epoch_index + 1, "best_epoch": best_epoch}
    del train_rows
    facts |= measure(run, model, valid_rows, change, slices)
    facts["seconds"] = round(time.perf_counter() - started, 3)
    return store.save(KIND, identity, FILE, lambda path: model.save_weights(str(path)), facts)


def measure(
    run: Any,
    model: BaseModel,
    valid_rows: Any,
    change: Callable[[Batch], Batch] = unchanged,
    slices: FrequencySlices | None = None,
) -> dict[str, Any]:
    """Metrics of a trained network on valid and test, and on test by slices: comparable with the run's own."""
    found: dict[str, Any] = {"metrics": {"valid": model.evaluate(Seeing(valid_rows, change)), "test": {}}}
    if run.params.get("test_data"):
        test_rows = Seeing(make_loaders(run.feature_map, run.params, "test"), change)
        found["metrics"]["test"] = model.evaluate(test_rows)
        found["slices"] = slices and slices.of_model(model, test_rows)
    return found
