"""An expid and a config -> one checked, fully resolved, flat dict of settings.

Three forms of `--config`: a directory of ours (it has `method_config/`, is strict, and stands on the
packaged one), a plain FuxiCTR directory (resolved as FuxiCTR does; unknown keys are warnings), and a
YAML file that `--print-config` printed.
"""

import dataclasses
import inspect
import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from fuxictr_llm import registry
from fuxictr_llm.checks import check_value, checked
from fuxictr_llm.errors import UserError, nearest, unknown
from fuxictr_llm.files import digest_of, replacing, writable_dir
from fuxictr_llm.keys import GROUP_METRICS, REQUIRED, DatasetKeys, ModelKeys
from fuxictr_llm.yamls import dump_yaml, parse_yaml, read_yaml

# Where a run takes place, how much it prints and what it is called do not change what it computes.
NO_IDENTITY = ("gpu", "model_id", "verbose")
CHOSEN_BY_EXPID = ("model", "method", "dataset_id", "model_id")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A resolved experiment.

    Attributes:
        expid: its label.
        params: every setting, flat, as FuxiCTR's models and loaders take them.
        dataset_keys: those of them that describe the data set.
        changed: whether `--seed` or `--set` made it differ from what the label stands for.
        config_name: names the result file, as in FuxiCTR.
    """

    expid: str
    params: dict[str, Any]
    dataset_keys: frozenset[str]
    changed: bool
    config_name: str

    @property
    def sha256(self) -> str:
        """Digest of what the run computes."""
        return digest_of({key: value for key, value in self.params.items() if key not in NO_IDENTITY})

    @property
    def full_id(self) -> str:
        """A name that no experiment with other settings has."""
        return f"{self.expid}_{self.sha256[:8]}"

    def to_yaml(self) -> str:
        """The resolved settings; as a file, a valid `--config`."""
        return dump_yaml({self.expid: {key: value for key, value in self.params.items() if key not in NO_IDENTITY[:2]}})

    def write_directory(self, folder: Path) -> None:
        """Write `model_config.yaml` and `dataset_config.yaml` in FuxiCTR's form, which its scripts and tuner take."""
        dataset_id, method = self.params["dataset_id"], self.params["method"]
        model_keys = {k: v for k, v in self.params.items() if k not in self.dataset_keys and k not in NO_IDENTITY[:2]}
        if not method or ":" not in model_keys["model"]:  # FuxiCTR's scripts know a model by one name
            model_keys["model"] = "_".join(filter(None, (model_keys["model"], model_keys.pop("method"))))
        dataset = {k: v for k, v in self.params.items() if k in self.dataset_keys}
        writable_dir(folder, "give another folder with --to")
        for name, entry in (
            ("model_config", {self.expid: {**model_keys, "dataset_id": dataset_id}}),
            ("dataset_config", {dataset_id: dataset}),
        ):
            with replacing(folder / f"{name}.yaml") as temporary:
                temporary.write_text(dump_yaml(entry), encoding="utf-8")


def load_experiment(
    expid: str,
    config: Path | str | None = None,
    *,
    seed: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    gpu: int = -1,
) -> Experiment:
    """Resolve and check an experiment.

    Args:
        expid: `{Backbone}[_{Method}]_{dataset_id}`, or a label that stands in the config.
        config: a directory or YAML file; None for the packaged `benchmark_configs`.
        seed: replaces the config's.
        overrides: settings that win over all others.
        gpu: index of the GPU, -1 for the CPU.

    Raises:
        UserError: something is unknown, missing, of the wrong type or out of range.
    """
    overrides = {**(overrides or {}), **({} if seed is None else {"seed": seed})}
    folder = packaged_configs() if config is None else Path(config)
    if folder.is_file():
        source = _from_file(expid, folder)
    elif not folder.is_dir():
        raise UserError(f"--config {str(folder)!r} is neither a directory nor a YAML file")
    elif (folder / "method_config").is_dir():
        source = _from_ours(expid, folder)
    else:
        source = _from_fuxictr(expid, folder)
    forbidden = [key for key in overrides if key in CHOSEN_BY_EXPID]
    if forbidden:
        raise UserError(f"{forbidden[0]!r} cannot be changed with --set; name another --expid")
    params = {**source.params, **overrides}
    _check(params, source, given=overrides)
    base, params = _completed(source.params, gpu), _completed(params, gpu)
    name = folder.name.removesuffix(".yaml") or "benchmark_configs"
    found = Experiment(source.expid, params, source.dataset_keys, changed=False, config_name=name)
    changed = found.sha256 != dataclasses.replace(found, params=base).sha256
    return dataclasses.replace(found, changed=changed)


def packaged_configs() -> Path:
    """The `benchmark_configs` directory that comes with the package."""
    from fuxictr_llm import benchmark_configs

    return Path(next(iter(benchmark_configs.__path__)))


def dataset_names(folder: Path | None = None) -> list[str]:
    """The data sets of a config directory of ours, aliases left out."""
    entries = _entries_of_ours(folder or packaged_configs(), "dataset_config")
    return sorted(name for name, entry in entries.items() if not isinstance(entry, str))


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """`["learning_rate=1e-3", ...]` as typed on a command line -> a dict, values read as YAML.

    Raises:
        UserError: a setting is not `key=value`, or a key is given twice with different values.
    """
    overrides = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise UserError(f"--set {setting!r} is not key=value")
        value = parse_yaml(value, where=f"--set {setting!r}")
        if key in overrides and overrides[key] != value:
            raise UserError(f"--set {key} is given twice: {overrides[key]!r} and {value!r}")
        overrides[key] = value
    return overrides


@dataclasses.dataclass(frozen=True)
class _Source:
    """Settings as read, before `--set`; `strict` says whether unknown keys are errors."""

    expid: str
    params: dict[str, Any]
    dataset_keys: frozenset[str]
    strict: bool
    where: str


def _from_ours(expid: str, folder: Path) -> _Source:
    models = _entries_of_ours(folder, "model_config")
    methods = _entries_of_ours(folder, "method_config")
    datasets = _entries_of_ours(folder, "dataset_config")
    exact = _entry(models, expid) or _entry(methods, expid)
    if {"model", "dataset_id"} <= exact.keys():
        backbone, method, dataset_id = exact["model"], exact.get("method"), exact["dataset_id"]
        if dataset_id not in datasets:
            raise unknown("data set", dataset_id, datasets, where=f"expid {expid!r}")
    else:
        backbone, method, dataset_id = _parse(expid, datasets)
    if isinstance(datasets[dataset_id], str):  # an alias
        dataset_id = datasets[dataset_id]
        if not exact:
            expid = "_".join(filter(None, (backbone, method, dataset_id)))
    layers = [models.get("Base"), models.get(backbone), models.get(f"{backbone}_{dataset_id}")]
    if method:
        layers += [methods.get(method), methods.get(f"{method}_{dataset_id}")]
    layers += [_entry(models, expid), _entry(methods, expid)]
    dataset = {key: value for key, value in datasets[dataset_id].items() if key != "dataset_id"}
    params = {key: value for layer in layers for key, value in (layer or {}).items()}
    params |= {"model": backbone, "method": method, "dataset_id": dataset_id, **dataset}
    return _Source(expid, params, frozenset(dataset), strict=True, where=f"expid {expid!r}")


def _parse(expid: str, datasets: Mapping[str, Any]) -> tuple[str, str | None, str]:
    backbone, _, rest = expid.partition("_")
    first, _, after = rest.partition("_")
    where = f"expid {expid!r}"
    if rest in datasets:
        method, dataset_id = None, rest
    elif after in datasets:
        method, dataset_id = first, after
    elif first in registry.method_names():
        raise unknown("data set", after, datasets, where)
    else:
        raise unknown("data set", rest, datasets, where)
    registry.find_backbone(backbone, where)
    if method:
        registry.find_method(method, where)
    return backbone, method, dataset_id


def _entries_of_ours(folder: Path, kind: str) -> dict[str, Any]:
    """The packaged entries with those of `folder` on top: key by key, but a data set is replaced whole."""
    packaged = _entries(packaged_configs(), kind)
    if folder.resolve() == packaged_configs().resolve():
        return packaged
    own = _entries(folder, kind)
    if kind != "dataset_config":
        own = {name: {**_entry(packaged, name), **(entry or {})} for name, entry in own.items()}
    return {**packaged, **own}


def _entries(folder: Path, kind: str) -> dict[str, Any]:
    entries: dict[str, Any] = {}
    for path in _config_files(folder, kind):
        for name, entry in read_yaml(path).items():
            if name in entries:
                raise UserError(f"{name!r} stands twice in {str(folder / kind)!r}, the second time in {path.name}")
            entries[name] = entry
    return entries


def _config_files(folder: Path, kind: str) -> list[Path]:
    single = folder / f"{kind}.yaml"
    return [single] if single.exists() else sorted((folder / kind).glob("*.yaml"))


def _entry(entries: Mapping[str, Any], name: str) -> dict[str, Any]:
    return entries.get(name) or {}


def _from_fuxictr(expid: str, folder: Path) -> _Source:
    """Resolve as fuxictr.utils.load_config does: `Base` below the expid's entry, the data set's keys win."""
    base: dict[str, Any] = {}
    found: dict[str, Any] | None = None
    names: list[str] = []
    files = _config_files(folder, "model_config")
    if not files:
        raise UserError(f"--config {str(folder)!r} has neither model_config.yaml nor model_config/*.yaml")
    for path in files:
        entries = read_yaml(path)
        names += [name for name in entries if name != "Base"]
        base = entries.get("Base") or base
        if found is None and expid in entries:
            found = entries[expid] or {}
        if base and found is not None:
            break
    if found is None:
        raise unknown("expid", expid, names, where=repr(str(folder)))
    params = {**base, **found}
    dataset_id = params.get("dataset_id")
    if dataset_id is None:
        raise UserError(f"expid {expid!r} in {str(folder)!r} names no dataset_id")
    datasets: dict[str, Any] = {}
    for path in _config_files(folder, "dataset_config"):
        datasets = {**read_yaml(path), **datasets}
    if dataset_id not in datasets:
        raise unknown("data set", dataset_id, datasets, where=f"expid {expid!r} of {str(folder)!r}")
    # FuxiCTR's tuner renames a data set but leaves the old id inside its entry; with the new name,
    # two data sets that differ never share a folder.
    dataset = {key: value for key, value in (datasets[dataset_id] or {}).items() if key != "dataset_id"}
    params = _split_model({**params, **dataset, "dataset_id": dataset_id})
    return _Source(expid, params, frozenset(dataset), strict=False, where=f"expid {expid!r} of {str(folder)!r}")


def _from_file(expid: str, path: Path) -> _Source:
    entries = read_yaml(path)
    if expid not in entries:
        raise unknown("expid", expid, entries, where=repr(str(path)))
    params = _split_model(dict(entries[expid] or {}))
    dataset_keys = frozenset(params) & (frozenset(DatasetKeys.__annotations__) - {"dataset_id"})
    return _Source(expid, params, dataset_keys, strict=True, where=f"expid {expid!r} of {str(path)!r}")


def _split_model(params: dict[str, Any]) -> dict[str, Any]:
    """`model: DeepFM_LLaCTR`, as FuxiCTR's scripts need it, -> `model: DeepFM, method: LLaCTR`."""
    model = params.get("model")
    if params.get("method") is None and isinstance(model, str) and ":" not in model:
        backbone, _, method = model.rpartition("_")
        if backbone and method in registry.method_names() and model not in registry.backbone_names():
            return {**params, "model": backbone, "method": method}
    return {**params, "method": params.get("method")}


def _completed(params: dict[str, Any], gpu: int) -> dict[str, Any]:
    threads = params.get("num_threads") or int(os.environ.get("OMP_NUM_THREADS") or _cores())
    return {**params, "num_threads": threads, "gpu": gpu}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check(params: dict[str, Any], source: _Source, given: Mapping[str, Any]) -> None:
    """Every key is known and every value fits; what `--set` gave is checked strictly everywhere."""
    missing = [key for key in REQUIRED if params.get(key) is None]
    if missing:
        raise UserError(f"{source.where} lacks {', '.join(map(repr, missing))}; FuxiCTR needs it in every config")
    check_value("model", params["model"], str)
    backbone = registry.find_backbone(params["model"], source.where)
    method = registry.find_method(params["method"], source.where) if params.get("method") else None
    hints = {**_constructor_hints(backbone), **get_type_hints(ModelKeys, include_extras=True)}
    hints |= get_type_hints(DatasetKeys, include_extras=True)
    known = {*hints, *(method.config_cls.__dataclass_fields__ if method else ())}
    for key in [key for key in params if key not in known]:
        if source.strict or key in given:
            hint = nearest(key, known) or "; it would have no effect"
            raise UserError(f"unknown config key {key!r} in {source.where}{hint}")
        logging.warning("config key %r of %s has no effect%s", key, source.where, nearest(key, known))
    for key, value in params.items():
        if hints.get(key) is not None:
            check_value(key, value, hints[key])
    if method:
        checked(method.config_cls, params)
    monitor = params.get("monitor") or "AUC"
    metrics = [*params["metrics"], *([monitor] if isinstance(monitor, str) else monitor)]
    grouped = [metric for metric in metrics if metric.startswith(GROUP_METRICS)]
    if grouped and not params.get("group_id"):
        raise UserError(f"metric {grouped[0]!r} needs group_id: the meta column whose rows are ranked together")


def _constructor_hints(backbone: type) -> dict[str, Any]:
    """Constructor keywords of a model class and its bases, with their type hints (None where there is none)."""
    hints: dict[str, Any] = {}
    for cls in reversed(backbone.__mro__):
        if "__init__" in vars(cls) and cls.__module__.split(".")[0] != "torch":
            annotated = get_type_hints(cls.__init__)
            names = [name for name, p in inspect.signature(cls.__init__).parameters.items() if p.kind != p.VAR_KEYWORD]
            hints |= {name: annotated.get(name) for name in names if name not in ("self", "feature_map")}
    return hints
