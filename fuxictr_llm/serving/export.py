"""Exports a trained model as a folder that can be served, and loads such a model as a teacher."""

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel
from safetensors.torch import save_file
from torch import Tensor

from fuxictr_llm import registry
from fuxictr_llm.common.checks import checked
from fuxictr_llm.common.errors import UserError, nearest, reason_of
from fuxictr_llm.common.files import (
    digest_of_file,
    explain_write_errors,
    read_json,
    replacing_dir,
    writable_dir,
    write_json,
)
from fuxictr_llm.common.run_files import find_run
from fuxictr_llm.common.runs import versions
from fuxictr_llm.config.keys import ModelKeys
from fuxictr_llm.config.origins import find_trained, origin_of
from fuxictr_llm.config.resolve import constructor_hints
from fuxictr_llm.enhancement.anatomy import find_anatomy, tap_keys
from fuxictr_llm.enhancement.base import Enhancement
from fuxictr_llm.enhancement.folded import StoredVectors
from fuxictr_llm.host.columns import make_feature_map
from fuxictr_llm.host.evaluated import INITIALIZER
from fuxictr_llm.host.tables import FIRST_COLD_ID
from fuxictr_llm.serving.config import CONFIG, FORMAT, cold_values_of, evaluation_of
from fuxictr_llm.serving.graphs import check_graphs, files_of_graphs, write_graphs
from fuxictr_llm.serving.load import WEIGHTS, AllocatingAtMost, build_backbone, load_model
from fuxictr_llm.serving.preprocessing import write_preprocessing
from fuxictr_llm.serving.runs import read_run
from fuxictr_llm.serving.sample import check_sample

METHOD_PART = "enhancement."
# Column type -> the keys by which the ids and values of two data sets have the same meaning.
DATA_KEYS: dict[str, tuple[str, ...]] = {
    "categorical": ("vocab_size",),
    "sequence": ("vocab_size", "max_len"),
    "embedding": ("pretrain_dim",),
    "numeric": (),
}


def export_run(run: Path | str, to: Path | str, graphs: Collection[str] = (), *, preprocessing: bool = True) -> Path:
    """Write the folder that `fuxictr_llm.load_model` loads; it contains no path of this machine.

    Args:
        run: `<model_root>/<dataset_id>/<model_id>`, as a run's summary prints it, its .run.json, or a folder with
            one run.
        to: the folder; an earlier export there is replaced, a folder with anything else is refused.
        graphs: what other programs can load, from ids to probabilities, is written as well: `onnx`, `pt2`.
        preprocessing: with what turns raw rows into ids, where the built data set of the run is still there.

    Raises:
        UserError: no such run, it is damaged, its method does not fold, it has no such graph, `to` cannot be written,
            the export predicts something else than the run did.
    """
    check_graphs(graphs)
    record_file = find_run(run)
    _check_target(Path(to))
    record, state = read_run(record_file)
    config, tensors, network = exported_content(record, state, record_file)
    writable_dir(Path(to).resolve().parent, "name another folder with --to")
    with explain_write_errors(Path(to), "name another folder with --to"), replacing_dir(to) as folder:
        save_file(tensors, folder / WEIGHTS)
        (folder / WEIGHTS).chmod(0o644)  # safetensors lets nobody else read it, and others may serve it
        checkpoint = _fuxictr_checkpoint(network, folder) if config["folded"] is None else None
        digests = {"weights_sha256": digest_of_file(folder / WEIGHTS), "fuxictr_checkpoint": checkpoint}
        made: dict[str, Any] = {"preprocessing": write_preprocessing(record, folder)} if preprocessing else {}
        write_json(folder / CONFIG, config | digests | made)
        served = load_model(folder)  # an export that cannot be loaded, or predicts something else, replaces nothing
        check_sample(served, record, f"the export of {str(run)!r}")
        if graphs:
            made["graphs"] = write_graphs(served, folder, graphs)
            write_json(folder / CONFIG, config | digests | made)
    return Path(to)


def _check_target(to: Path) -> None:
    if to.exists() and not to.is_dir():
        raise UserError(f"--to {str(to)!r} is a file; name another folder")
    there = {path.name for path in to.iterdir()} if to.exists() else set()
    if there and not (there == _files_of_export(read_json(to / CONFIG))):
        raise UserError(f"--to {str(to)!r} holds other files than an export's, which are kept; name another folder")


def _files_of_export(config: Any) -> set[str]:
    """The file names of the export with this config.json; none where it is no export's."""
    if not isinstance(config, dict) or "weights_sha256" not in config:
        return set()
    checkpoint = config.get("fuxictr_checkpoint")  # not in exports of earlier versions
    file = checkpoint.get("file") if isinstance(checkpoint, dict) else None
    noted = config.get("preprocessing")
    files = {CONFIG, WEIGHTS, *(noted.get("files") or () if isinstance(noted, dict) else ()), *files_of_graphs(config)}
    return {*files, file} if isinstance(file, str) else files


def _fuxictr_checkpoint(network: BaseModel, folder: Path) -> dict[str, str]:
    """Write the file that the unmodified backbone class loads with `load_weights`; its name and digest."""
    file = folder / f"{type(network).__name__}.model"
    network.save_weights(file)
    return {"file": file.name, "sha256": digest_of_file(file)}


def exported_content(
    record: Mapping[str, Any], state: Mapping[str, Tensor], record_file: Path
) -> tuple[dict[str, Any], dict[str, Tensor], BaseModel]:
    """The content of config.json, without the digests, and of model.safetensors; the trained backbone."""
    settings, where = record["config"], repr(str(record_file))
    trained = record.get("backbone") or {}
    cls = find_trained(settings["model"], trained, where)
    method = registry.find_method(settings["method"], where) if settings.get("method") else None
    if settings.get("user_info"):
        raise UserError(f"{where}: a model of long sequences (tuple batches) cannot be served; use FuxiCTR's predict")
    added = record.get("added_columns") or {}
    feature_map = make_feature_map(_with_columns(record["feature_map"], added), where)
    params = _constructor_params(cls, settings)
    backbone = {name: value for name, value in state.items() if not name.startswith(METHOD_PART)}
    try:
        with AllocatingAtMost(state):
            model = build_backbone(cls, feature_map, params)
        model.load_state_dict(backbone)
    except Exception as error:  # a constructor fails in many ways on settings that it does not check
        raise UserError(f"the weights beside {where} are of other settings ({reason_of(error)})") from error
    folded = _fold(method, settings, model, state)
    part = {} if folded is None else {METHOD_PART + name: value for name, value in folded.state_dict().items()}
    given = isinstance(folded, StoredVectors)  # by the model itself; else a batch must have these columns
    described = _with_columns(record["feature_map"], {} if given else added)
    described["features"] = _without_paths(described["features"])
    name, origin = origin_of(cls).portable()
    config = {
        "format": FORMAT,
        "versions": {name: value for name, value in versions().items() if name in ("fuxictr-llm", "fuxictr", "torch")},
        "model": name,
        "backbone": origin | {"sha256": trained.get("sha256", origin["sha256"])},
        "method": settings.get("method"),
        "variant": settings.get("variant"),
        "folded": folded and _described(folded),
        "params": params,
        "feature_map": described,
        "data": record.get("data"),
        "cold_values": cold_values_of(record) or None,
        "evaluation": evaluation_of(settings),
        "source": {key: record.get(key) for key in ("model_id", "config_sha256", "seed", "time", "metrics")},
    }
    # Fields may share a tensor; safetensors needs each in memory of its own.
    return config, {name: value.clone().contiguous() for name, value in {**backbone, **part}.items()}, model


def _with_columns(described: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """A described feature map with more columns."""
    return {**described, "features": {**described["features"], **added}}


def _described(folded: Enhancement) -> dict[str, Any]:
    settings = {} if folded.config is None else {"settings": asdict(folded.config)}
    return {"class": type(folded).__name__, "fields": list(folded.anatomy.fields), **settings}


def _fold(
    method: registry.RegisteredMethod | None, settings: Mapping[str, Any], model: Any, state: Mapping[str, Tensor]
) -> Enhancement | None:
    if method is None:
        return None
    own = {name.removeprefix(METHOD_PART): value for name, value in state.items() if name.startswith(METHOD_PART)}
    anatomy = find_anatomy(model, **tap_keys(settings))
    with torch.no_grad():
        folded = method.model_cls.fold(checked(method.config_cls, settings), anatomy, own)
    if folded is not None and folded.field_projections is not None:
        part = "field_projections."
        trained = {name.removeprefix(part): value for name, value in own.items() if name.startswith(part)}
        folded.field_projections.load_state_dict(trained)
    return folded


def _constructor_params(cls: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that define a backbone's form: its constructors' arguments, except those of training."""
    training = ModelKeys.__annotations__.keys() - {"task", "embedding_dim"}
    names = constructor_hints(cls).keys() - training - {"embedding_regularizer", "net_regularizer", "regularizer"}
    kept = {key: value for key, value in settings.items() if key in names}
    return {key: value for key, value in kept.items() if INITIALIZER not in key} | tap_keys(settings)


def _without_paths(features: Mapping[str, Any]) -> dict[str, Any]:
    """The columns' descriptions; in place of the path of pretrained embeddings stands None."""
    return {
        name: spec | ({"pretrained_emb": None} if "pretrained_emb" in spec else {}) for name, spec in features.items()
    }


def load_network(source: Path | str, gpu: int = -1) -> tuple[BaseModel, dict[str, Any]]:
    """A trained network in evaluation mode, without gradients, and the content of its export's config.json.

    Args:
        source: an export's folder, or a run as `export_run` takes it: `<model_root>/<dataset_id>/<model_id>`.
        gpu: index of the GPU, -1 for the CPU.

    Raises:
        UserError: there is none, it is damaged, or its method cannot be served.
    """
    if (Path(source) / CONFIG).is_file():
        served = load_model(source, gpu)
    else:
        with tempfile.TemporaryDirectory() as folder:
            served = load_model(export_run(source, Path(folder) / "network", preprocessing=False), gpu)
    features = served.model.feature_map.features
    for name in [name for name, spec in features.items() if spec["type"] == "meta"]:
        del features[name]  # no network reads it, and the data need not have it
    return served.model, dict(served.config)


def check_same_data(config: Mapping[str, Any], data: Mapping[str, Any], feature_map: FeatureMap, what: str) -> None:
    """Check that the ids of a data set are those that a network was trained on; it need not read all columns.

    Args:
        config: of the network, from `load_network`.
        data: `data` of the run record, from `describe_data`.
        feature_map: of the data set.
        what: names the network in errors, for example "teacher 'runs/a'".

    Raises:
        UserError: it was trained on other files, or its columns are not those of the data set.
    """
    theirs, specs = config.get("data"), feature_map.features
    if not isinstance(theirs, dict) or not theirs.keys() >= {"dataset_id", "sha256"}:
        raise UserError(f"{what} does not say which data it was trained on; train or export it with this version")
    both = f"{what} was trained on {_named(theirs)}, this run's is {_named(data)}"
    if theirs["sha256"] != data["sha256"]:
        raise UserError(f"{both}; train it on the same files")
    if config["feature_map"]["labels"] != feature_map.labels:
        raise UserError(f"{both}, with label {feature_map.labels} in place of {config['feature_map']['labels']}")
    for name, spec in config["feature_map"]["features"].items():
        if spec["type"] not in DATA_KEYS:  # a meta column, which no network reads
            continue
        if name not in specs:
            raise UserError(f"{both}, which lacks its column {name!r}{nearest(name, specs)}")
        theirs_here = _in_training(spec), _in_training(specs[name])
        for key in ("type", *DATA_KEYS[spec["type"]]):
            there, here = (described.get(key) for described in theirs_here)
            if there != here:
                values = f"{key} {there!r} there, {here!r} here"
                raise UserError(f"{both}, built in another way: column {name!r} has {values}")


def _in_training(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """A column's description without the ids that came after training."""
    return {**spec, "vocab_size": spec[FIRST_COLD_ID]} if FIRST_COLD_ID in spec else spec


def _named(data: Mapping[str, Any]) -> str:
    digests = data["sha256"].get("train") or [""]
    return f"data set {data['dataset_id']!r} (sha256 of train: {digests[0][:12]}...)"
