"""Reads the settings of an expid from the packaged YAML files, a config directory of ours or FuxiCTR's, or a file.

Files and entries that no expid reads are warned of: a misspelt entry would leave the defaults without a word.
"""

import copy
import functools
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fuxictr_llm import registry
from fuxictr_llm.common.checks import check_value
from fuxictr_llm.common.errors import UserError, nearest, unknown
from fuxictr_llm.common.formats import read_yaml
from fuxictr_llm.config.beside import found_beside
from fuxictr_llm.config.keys import DatasetKeys


@dataclass(frozen=True)
class Source:
    """Settings as read, before `--set`; with `strict`, unknown keys are errors."""

    expid: str
    params: dict[str, Any]
    dataset_keys: frozenset[str]
    strict: bool
    where: str


def read_source(expid: str, config: Path | str | None) -> Source:
    """The settings that `--config` holds for an expid.

    Raises:
        UserError: the config or the expid is unknown, or a file cannot be read.
    """
    folder = packaged_configs() if config is None else Path(config)
    if folder.is_file():
        return _from_file(expid, folder)
    if not folder.is_dir():
        raise UserError(f"--config {str(folder)!r} is neither a directory nor a YAML file")
    if (folder / "method_config").is_dir():
        return _from_ours(expid, folder)
    return _from_fuxictr(expid, folder)


def packaged_configs() -> Path:
    """The `benchmark_configs` directory that comes with the package."""
    from fuxictr_llm import benchmark_configs

    return Path(next(iter(benchmark_configs.__path__)))


def dataset_names(folder: Path | None = None) -> list[str]:
    """The data sets of a config directory of ours, without aliases."""
    entries = entries_of_ours(folder or packaged_configs(), "dataset_config")
    return sorted(name for name, entry in entries.items() if not isinstance(entry, str))


def model_entry_names(folder: Path | None = None) -> list[str]:
    """The entries of `model_config` in a config directory of ours: backbones, and whole expids."""
    return sorted(entries_of_ours(folder or packaged_configs(), "model_config"))


def _from_ours(expid: str, folder: Path) -> Source:
    models = entries_of_ours(folder, "model_config")
    methods = entries_of_ours(folder, "method_config")
    datasets = entries_of_ours(folder, "dataset_config")
    if folder.resolve() != packaged_configs().resolve():
        _warn_of_strays(folder, models, methods, datasets)
    exact = entry_of(models, expid) or entry_of(methods, expid)
    if {"model", "dataset_id"} <= exact.keys():
        for key in ("model", "dataset_id", "method"):
            check_value(key, exact.get(key), str | None if key == "method" else str)
        backbone, method, dataset_id = exact["model"], exact.get("method"), exact["dataset_id"]
        if dataset_id not in datasets:
            raise unknown("data set", dataset_id, datasets, where=f"expid {expid!r}")
    else:
        backbone, method, dataset_id = _parse(expid, models, methods, datasets)
    if isinstance(datasets[dataset_id], str):  # an alias
        alias, dataset_id = dataset_id, datasets[dataset_id]
        if not isinstance(datasets.get(dataset_id), dict):
            raise unknown("data set", dataset_id, datasets, where=f"alias {alias!r}")
        if not exact:
            expid = "_".join(filter(None, (backbone, method, dataset_id)))
    layers = [models.get("Base"), models.get(backbone), models.get(f"{backbone}_{dataset_id}")]
    if method:
        layers += [methods.get(method), methods.get(f"{method}_{dataset_id}")]
    layers += [entry_of(models, expid), entry_of(methods, expid)]
    dataset = {key: value for key, value in datasets[dataset_id].items() if key != "dataset_id"}
    params = {key: value for layer in layers for key, value in (layer or {}).items()}
    params |= {"model": _named(models, backbone, "model"), "method": method and _named(methods, method, "method")}
    params |= {"dataset_id": dataset_id, **dataset}
    params = copy.deepcopy(params)  # the entries are those of all that read the files
    return Source(expid, params, frozenset(dataset), strict=True, where=f"expid {expid!r}")


def _warn_of_strays(
    folder: Path, models: Mapping[str, Any], methods: Mapping[str, Any], datasets: Mapping[str, Any]
) -> None:
    backbones = {"Base", *registry.backbone_names(), *names_of(models, "model")}
    named = {*registry.method_names(), *names_of(methods, "method")}
    warn_of_entries(folder, "model_config", _entries(folder, "model_config"), backbones, named, datasets)
    # A method's entry may also have the whole expid for its name.
    of_methods = _entries(folder, "method_config")
    warn_of_entries(folder, "method_config", of_methods, {*named, *backbones} - {"Base"}, named, datasets)


def _named(entries: Mapping[str, Any], name: str, key: str) -> str:
    """The name by which the registry finds a class: `my_net.py:MyNet` of `MyNet: {model: my_net.py:MyNet, ...}`."""
    return entry_of(entries, name).get(key) or name


def names_of(entries: Mapping[str, Any], key: str) -> set[str]:
    """The names that entries give to users' classes: `MyNet: {model: my_net.py:MyNet, ...}`."""
    return {name for name in entries if "dataset_id" not in entry_of(entries, name) and key in entry_of(entries, name)}


def _parse(
    expid: str, models: Mapping[str, Any], methods: Mapping[str, Any], datasets: Mapping[str, Any]
) -> tuple[str, str | None, str]:
    own = names_of(models, "model")
    # A registered backbone's name may have underscores of its own.
    named = [name for name in {*registry.backbone_names(), *own} if expid.startswith(f"{name}_")]
    backbone = max(named, key=len) if named else expid.partition("_")[0]
    rest = expid[len(backbone) + 1 :]
    first, _, after = rest.partition("_")
    where = f"expid {expid!r}"
    if not rest or (first in {*registry.method_names(), *methods} and not after and first not in datasets):
        raise _names_no_data_set(
            expid, bool(named) or expid.rstrip("_") in {*registry.backbone_names(), *own}, datasets
        )
    if rest in datasets:
        method, dataset_id = None, rest
    elif after in datasets:
        method, dataset_id = first, after
    elif first in {*registry.method_names(), *methods}:
        raise unknown("data set", after, datasets, where)
    else:
        raise unknown("data set", rest, datasets, where)
    named_method, others = method and _named(methods, method, "method"), names_of(methods, "method")
    if named_method and named_method not in registry.method_names():  # before a backbone is found, which imports torch
        registry.find_method(named_method, where, others)
    registry.find_backbone(_named(models, backbone, "model"), where, own)
    if named_method:
        registry.find_method(named_method, where, others)
    return backbone, method, dataset_id


def _names_no_data_set(expid: str, has_backbone: bool, datasets: Mapping[str, Any]) -> UserError:
    """The error for an expid of one part, or one that ends where its data set should stand."""
    form = "an expid is {Backbone}[_{Method}]_{dataset_id}, or a label in the config"
    if has_backbone:
        example = f"{expid.rstrip('_')}_{'movielens100k' if 'movielens100k' in datasets else next(iter(datasets))}"
        return UserError(f"expid {expid!r} names no data set; for example {example}")
    if expid in datasets:
        return UserError(f"expid {expid!r} names a data set alone: {form}; for example DeepFM_{expid}")
    hint = nearest(expid, [*registry.backbone_names(), *datasets])
    return UserError(f"expid {expid!r} names neither a backbone nor a data set: {form}{hint}")


def entries_of_ours(folder: Path, kind: str) -> dict[str, Any]:
    """The packaged entries with those of `folder` on top: merged key by key, but a data set is replaced as a whole."""
    packaged = _entries(packaged_configs(), kind)
    if folder.resolve() == packaged_configs().resolve():
        return packaged
    own = {
        name: found_beside(entry, folder) if isinstance(entry, dict) else entry
        for name, entry in _entries(folder, kind).items()
    }
    if kind != "dataset_config":
        own = {name: {**entry_of(packaged, name), **(entry or {})} for name, entry in own.items()}
    return {**packaged, **own}


def _entries(folder: Path, kind: str) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for path in config_files(folder, kind):
        for name, entry in read_yaml(path, shared=True).items():
            if name in entries:
                raise UserError(f"{name!r} stands twice in {str(folder / kind)!r}, the second time in {path.name}")
            if not isinstance(name, str):
                raise UserError(f"entry {name!r} of {str(path)!r} is a {type(name).__name__}; write its name in quotes")
            alias = kind == "dataset_config" and isinstance(entry, str)
            if not (isinstance(entry, dict) or alias or (entry is None and kind != "dataset_config")):
                raise UserError(f"entry {name!r} of {str(path)!r} must map keys to values (got {entry!r})")
            entries[name] = entry
    return entries


def config_files(folder: Path, kind: str) -> list[Path]:
    warn_of_files(folder, kind)
    single = folder / f"{kind}.yaml"
    return [single] if single.exists() else sorted((folder / kind).glob("*.yaml"))


def entry_of(entries: Mapping[str, Any], name: str) -> dict[str, Any]:
    return entries.get(name) or {}


def _from_fuxictr(expid: str, folder: Path) -> Source:
    """Resolve as fuxictr.utils.load_config does: `Base` below the expid's entry, the data set's keys win."""
    base: dict[str, Any] = {}
    entry: dict[str, Any] | None = None
    names: list[str] = []
    files = config_files(folder, "model_config")
    if not files:
        raise UserError(
            f"--config {str(folder)!r} has neither model_config.yaml nor model_config/*.yaml; "
            "a directory of ours also needs a folder method_config/, which may hold nothing"
        )
    for path in files:
        entries = read_yaml(path)
        names += [name for name in entries if name != "Base"]
        base = entries.get("Base") or base
        if entry is None and expid in entries:
            entry = entries[expid] or {}
        if base and entry is not None:
            break
    if entry is None:
        error = unknown("expid", expid, names, where=repr(str(folder)))
        if {*expid.split("_")} & {*registry.method_names()}:
            raise UserError(f"{error}; 'mkdir {folder / 'method_config'}' makes any backbone with any method an expid")
        raise error
    params = {**base, **entry}
    dataset_id = params.get("dataset_id")
    if dataset_id is None:
        raise UserError(f"expid {expid!r} in {str(folder)!r} names no dataset_id")
    check_value("dataset_id", dataset_id, str)
    datasets: dict[str, Any] = {}
    for path in config_files(folder, "dataset_config"):
        datasets = {**read_yaml(path), **datasets}
    if dataset_id not in datasets:
        raise unknown("data set", dataset_id, datasets, where=f"expid {expid!r} of {str(folder)!r}")
    # FuxiCTR's tuner renames a data set but leaves the old id inside its entry; with the new name,
    # two data sets that differ never share a folder.
    dataset = {key: value for key, value in (datasets[dataset_id] or {}).items() if key != "dataset_id"}
    params = found_beside(_split_model({**params, **dataset, "dataset_id": dataset_id}), folder)
    return Source(expid, params, frozenset(dataset), strict=False, where=f"expid {expid!r} of {str(folder)!r}")


def _from_file(expid: str, path: Path) -> Source:
    entries = read_yaml(path)
    if expid not in entries:
        raise unknown("expid", expid, entries, where=repr(str(path)))
    params = found_beside(_split_model(dict(entries[expid] or {})), path.parent)
    dataset_keys = frozenset(params) & (frozenset(DatasetKeys.__annotations__) - {"dataset_id"})
    return Source(expid, params, dataset_keys, strict=True, where=f"expid {expid!r} of {str(path)!r}")


def _split_model(params: dict[str, Any]) -> dict[str, Any]:
    """`model: DeepFM_LLaCTR`, as FuxiCTR's scripts need it, -> `model: DeepFM, method: LLaCTR`."""
    model = params.get("model")
    if params.get("method") is None and isinstance(model, str) and ":" not in model:
        backbone, _, method = model.rpartition("_")
        if backbone and method in registry.method_names() and model not in registry.backbone_names():
            return {**params, "model": backbone, "method": method}
    return {**params, "method": params.get("method")}


def warn_of_files(folder: Path, kind: str) -> None:
    """Warn of files that are not read: those that end in `.yml`, and a folder beside the file of its name."""
    strays = [*folder.glob(f"{kind}.yml"), *(folder / kind).glob("*.yml")]
    for path in sorted(strays):
        _warn(f"{str(path)!r} is not read: FuxiCTR's configs end in .yaml")
    if (folder / f"{kind}.yaml").exists() and any((folder / kind).glob("*.yaml")):
        _warn(f"{str(folder / kind)!r} is not read, because {kind}.yaml is there; leave one of the two")


def warn_of_entries(
    folder: Path,
    kind: str,
    entries: Mapping[str, Any],
    named: Collection[str],
    methods: Collection[str],
    datasets: Iterable[str],
) -> None:
    """Warn of entries that no expid reads.

    Args:
        kind: `model_config` or `method_config`.
        entries: the user's own of that kind.
        named: the backbones, or the methods, that the name of such an entry may begin with.
        methods, datasets: what may follow in its name.
    """
    ends = {*datasets} | {f"{method}_{dataset}" for method in methods for dataset in datasets}
    for name, entry in entries.items():
        is_label = {"model", "dataset_id"} <= (entry or {}).keys()
        heads = [head for head in named if name.startswith(f"{head}_")]
        if name in named or is_label or any(name[len(head) + 1 :] in ends for head in heads):
            continue
        starts = heads or [head for head in named if name.partition("_")[0] == head]
        hint = nearest(name, [*named, *(f"{head}_{end}" for head in starts for end in ends)])
        _warn(f"entry {name!r} of {str(folder / kind)!r} is read by no expid: it names no known part{hint}")


@functools.cache  # a leaderboard reads the same configs for every arm
def _warn(message: str) -> None:
    logging.warning(message)
