"""Resolves an expid and a config into one checked, flat dict of settings: the Experiment."""

import dataclasses
import inspect
import logging
import os
from collections.abc import Callable, Container, Iterable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

from fuxictr_llm import registry
from fuxictr_llm.common.checks import check_label, check_name, check_value, checked, field_names, fits
from fuxictr_llm.common.errors import UserError, nearest
from fuxictr_llm.common.files import digest_of, replacing, writable_dir
from fuxictr_llm.common.formats import dump_yaml, parse_yaml
from fuxictr_llm.config.column_keys import RENAMED, Unread, check_columns, without
from fuxictr_llm.config.keys import (
    GROUP_METRICS,
    MAX_LEN,
    REGULARIZERS,
    REQUIRED,
    REQUIRED_OF_CSV,
    DatasetKeys,
    LongKeys,
    ModelKeys,
)
from fuxictr_llm.config.language_models import ValueVectorsConfig, asks_for_vectors, moved_to_specs, value_config
from fuxictr_llm.config.origins import origin_of
from fuxictr_llm.config.sources import Source, read_source
from fuxictr_llm.config.trackers import check_trackers
from fuxictr_llm.host.batches import chosen_mode, monitored, warn_of_mode
from fuxictr_llm.host.columns import as_lists, as_tuples, check_declared
from fuxictr_llm.host.evaluated import check_settings

# Keys that do not change what a run computes: its device and name, how much it reports, who publishes its data.
OF_THE_CALL = ("gpu", "model_id")
OF_THE_REPORT = ("verbose", "pictures", "keep_predictions", "measure_serving", "cluster_by", "slice_by")
NOT_IN_IDENTITY = (*OF_THE_CALL, *OF_THE_REPORT, "checkpoint_minutes", "trackers", "download", "md5")
# A constructor with the key `regularizer` passes it on as these two, and takes neither of them itself.
OF_REGULARIZER = frozenset({"embedding_regularizer", "net_regularizer"})
NOT_SET = dict.fromkeys(("model", "method", "dataset_id", "model_id"), "name another --expid") | {"gpu": "use --gpu"}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A resolved experiment.

    Attributes:
        expid: its label.
        params: every setting, flat, as FuxiCTR's models and loaders take them.
        dataset_keys: the keys that describe the data set.
        without_effect: the keys that nothing reads; a plain FuxiCTR config may have some.
        changed: whether `--seed` or `--set` made it differ from what its label stands for.
        config_name: names the result file, as in FuxiCTR.
    """

    expid: str
    params: dict[str, Any]
    dataset_keys: frozenset[str]
    without_effect: frozenset[str]
    changed: bool
    config_name: str

    @property
    def sha256(self) -> str:
        """Digest of what the run computes."""
        return digest_of({key: value for key, value in self.params.items() if key not in NOT_IN_IDENTITY})

    @property
    def full_id(self) -> str:
        """The label with a digest of the settings: unique to them."""
        return f"{self.expid}_{self.sha256[:8]}"

    @property
    def run_id(self) -> str:
        """What its run is called, as long as no run with other settings is called so."""
        return self.full_id if self.changed else self.expid

    def to_yaml(self) -> str:
        """The resolved settings as YAML; in a file, they are a valid `--config`."""
        return dump_yaml({self.expid: self._settings()})

    def _settings(self) -> dict[str, Any]:
        left_out = {*OF_THE_CALL, *self.without_effect}
        return {key: value for key, value in self.params.items() if key not in left_out}

    def write_directory(self, folder: Path, named: Mapping[str, str] | None = None) -> None:
        """Write `model_config.yaml` and `dataset_config.yaml` in the form that FuxiCTR's scripts and tuner read.

        Args:
            named: what stands there in place of some values, as for files that are brought along.
        """
        dataset_id, method = self.params["dataset_id"], self.params["method"]
        model_keys = {key: value for key, value in self._settings().items() if key not in self.dataset_keys}
        model_keys = as_tuples(model_keys, registry.find_backbone(model_keys["model"]))
        if not method:
            model_keys.pop("method")
        elif ":" in f"{model_keys['model']}{method}":  # a class of the user's
            left_out = "FuxiCTR's own scripts leave out 'method: %s' and train the plain %s; ours take both"
            logging.warning(left_out, method, model_keys["model"])
        else:  # FuxiCTR's scripts know a model by one name
            model_keys["model"] = f"{model_keys['model']}_{model_keys.pop('method')}"
        dataset = {key: value for key, value in self._settings().items() if key in self.dataset_keys}
        if asks_for_vectors(self.params):
            logging.warning(
                "'pretrained_emb: llm' works with our commands; FuxiCTR's own scripts take the feature_specs that "
                "'python -m fuxictr_llm encode' prints"
            )
        writable_dir(folder, "give another folder with --to")
        for name, entry in (
            ("model_config", {self.expid: {**model_keys, "dataset_id": dataset_id}}),
            ("dataset_config", {dataset_id: dataset}),
        ):
            with replacing(folder / f"{name}.yaml") as temporary:
                written = {key: _renamed(settings, named or {}) for key, settings in entry.items()}
                temporary.write_text(dump_yaml(written), encoding="utf-8")


def _renamed(settings: Mapping[str, Any], named: Mapping[str, str]) -> dict[str, Any]:
    return {key: named.get(key, value) for key, value in settings.items()}


def load_experiment(
    expid: str,
    config: Path | str | None = None,
    *,
    seed: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    gpu: int = -1,
    threads: int | None = None,
) -> Experiment:
    """Resolve and check an experiment.

    Args:
        expid: `{Backbone}[_{Method}]_{dataset_id}`, or a label that stands in the config.
        config: a directory or YAML file; None for the packaged `benchmark_configs`.
        seed: replaces the config's.
        overrides: settings that win over all others.
        gpu: index of the GPU, -1 for the CPU.
        threads: `num_threads` where the settings leave it open; None: one for each core.

    Raises:
        UserError: something is unknown, missing, of the wrong type or out of range.
    """
    return resolved(read_source(expid, config), config, seed=seed, overrides=overrides, gpu=gpu, threads=threads)


def resolved(
    source: Source,
    config: Path | str | None,
    *,
    seed: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    gpu: int = -1,
    threads: int | None = None,
) -> Experiment:
    """The experiment of settings as `read_source` reads them from a config; the rest is as for `load_experiment`."""
    overrides = as_lists({**(overrides or {}), **({} if seed is None else {"seed": seed})})
    source = dataclasses.replace(source, params=as_lists(source.params))
    check_label(source.expid)
    if isinstance(dataset_id := source.params.get("dataset_id"), str):
        check_name("dataset_id", dataset_id, source.where)
    for key in overrides:
        if key in NOT_SET:
            raise UserError(f"{key!r} cannot be changed with --set; {NOT_SET[key]}")
    params = {**source.params, **overrides}
    without_effect, unread = _check(params, source, given=overrides)
    params = without(params, unread)
    base = without(source.params, (one for one in unread if one.setting not in overrides))
    base, params = (_completed(settings, gpu, threads) for settings in (base, params))
    name = Path(config or "benchmark_configs").resolve().name.removesuffix(".yaml")
    label = source.expid.replace("/", "-")  # `LongCTR/DIN_movies`: files are named by the label
    experiment = Experiment(label, params, source.dataset_keys, without_effect, changed=False, config_name=name)
    changed = experiment.sha256 != dataclasses.replace(experiment, params=base).sha256
    return dataclasses.replace(experiment, changed=changed)


def parse_overrides(settings: Iterable[str]) -> dict[str, Any]:
    """The settings of `--set`, `["learning_rate=1e-3", ...]`, as a dict; values are read as YAML.

    Raises:
        UserError: a setting is not `key=value`, or a key is given twice with different values.
    """
    overrides: dict[str, Any] = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise UserError(f"--set {setting!r} is not key=value")
        value = parse_yaml(value, where=f"--set {setting!r}")
        if key in overrides and overrides[key] != value:
            raise UserError(f"--set {key} is given twice: {overrides[key]!r} and {value!r}")
        overrides[key] = value
    return overrides


def _completed(params: dict[str, Any], gpu: int, threads: int | None) -> dict[str, Any]:
    """Settings with what depends on the machine and the call, those that mean the same in one form."""
    # FuxiCTR silently ignores a regularizer that is an integer.
    numbers = {key: float(params[key]) for key in REGULARIZERS if isinstance(params.get(key), int)}
    threads = params.get("num_threads") or threads or _cores()
    mode = chosen_mode(params)
    return {**moved_to_specs(params), **numbers, "monitor_mode": mode, "num_threads": threads, "gpu": gpu}


def _cores() -> int:
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if wanted.isdecimal() and int(wanted):
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check(params: dict[str, Any], source: Source, given: Mapping[str, Any]) -> tuple[frozenset[str], list[Unread]]:
    """Check that every key is known and every value fits.

    Returns:
        The keys without effect, which `--set` may not give: those of the settings, and those inside of columns.
    """
    needed = (*REQUIRED, *(REQUIRED_OF_CSV if params.get("data_format") == "csv" else ()))
    missing = [key for key in needed if params.get(key) is None]
    if missing:
        raise UserError(f"{source.where} lacks {', '.join(map(repr, missing))}; FuxiCTR needs it in every config")
    check_value("model", params["model"], str)
    backbone = registry.find_backbone(params["model"], source.where)
    method = registry.find_method(params["method"], source.where) if params.get("method") else None
    own_hints = constructor_hints(backbone)
    hints = _hints(params, own_hints)
    known = known_keys(params)
    unknown_keys = frozenset(key for key in params if key not in known)
    for key in sorted(unknown_keys, key=str):
        if source.strict or key in given:
            hint = _now_called(key, known) or nearest(key, known) or "; it would have no effect"
            hint = "; did you mean 'regularizer'?" if key in OF_REGULARIZER else hint
            raise UserError(f"unknown config key {key!r} in {source.where}{hint}")
        hint = _now_called(key, known) or nearest(key, known)
        logging.warning("config key %r of %s has no effect%s", key, source.where, hint)
    as_given = as_tuples(params, backbone)
    for key, value in params.items():
        if hints.get(key) is not None:
            check_value(key, value, hints[key])
        if own_hints.get(key) is not None:  # a constructor may allow less than the key does
            check_value(key, value if fits(value, own_hints[key]) else as_given[key], own_hints[key])
    check_settings(params, backbone, source.where)
    if params.get("trackers"):
        check_trackers(params["trackers"])
    own_processor = ":" in (params.get("feature_processor") or "")
    own_model = origin_of(backbone).kind in ("file", "module")
    # A class of the user's may read keys that are not known here.
    users_own = {"feature_cols": own_processor, "label_col": own_processor, "feature_specs": own_model}
    strict = {key for key, is_own in users_own.items() if not is_own and (source.strict or key in given)}
    unread = [one for one in check_columns(params, source.where, strict) if not users_own[one.setting]]
    if params.get("feature_cols") and params.get("label_col"):
        check_declared(params)
    if method:
        checked(method.config_cls, params)
        _warn_of_shared(backbone, own_hints.keys() & field_names(method.config_cls), method.name)
    if asks_for_vectors(params):
        value_config(params)
    if params.get("user_info"):
        _check_lengths(backbone, params)
    warn_of_mode(params, source.where)
    metrics = [*params["metrics"], *monitored(params)]
    grouped = [metric for metric in metrics if metric.startswith(GROUP_METRICS)]
    if grouped and not params.get("group_id"):
        raise UserError(f"metric {grouped[0]!r} needs group_id: the meta column whose rows are ranked together")
    return unknown_keys, unread


def _now_called(key: str, known: Container[str]) -> str:
    return f"; FuxiCTR calls it {RENAMED[key]!r} now" if key in RENAMED and RENAMED[key] in known else ""


def known_keys(params: Mapping[str, Any]) -> frozenset[str]:
    """The config keys that an experiment with these settings may have.

    Raises:
        UserError: its backbone or its method is unknown.
    """
    known = {*_hints(params, constructor_hints(registry.find_backbone(params["model"])))}
    if method := params.get("method"):
        known |= field_names(registry.find_method(method).config_cls)
    if asks_for_vectors(params):
        known |= field_names(ValueVectorsConfig)
    return frozenset(known - OF_REGULARIZER if "regularizer" in known else known)


def _hints(params: Mapping[str, Any], own_hints: Mapping[str, Any]) -> dict[str, Any]:
    """The types of the keys, without the method's; a key's general type goes before its constructor's."""
    hints = {**own_hints, **get_type_hints(ModelKeys, include_extras=True)}
    hints |= get_type_hints(DatasetKeys, include_extras=True)
    return hints | (get_type_hints(LongKeys, include_extras=True) if params.get("user_info") else {})


def _check_lengths(backbone: type, params: Mapping[str, Any]) -> None:
    """FuxiCTR's LongCTR models fail deep inside where `short_seq_len` is longer than the whole history."""
    parameter = inspect.signature(backbone).parameters.get("short_seq_len")
    longest = params.get("max_len", MAX_LEN)
    short = params.get("short_seq_len", parameter.default if parameter else 0)
    if isinstance(short, int) and short > longest:
        raise UserError(f"short_seq_len {short} is more than max_len {longest}; {backbone.__name__} takes at most that")


def _warn_of_shared(backbone: type, keys: Iterable[str], method: str) -> None:
    """Warn of keys that both the backbone and the method have: both get the same value."""
    shared = sorted({*keys} - ModelKeys.__annotations__.keys() - DatasetKeys.__annotations__.keys())
    if shared:
        names = ", ".join(map(repr, shared))
        logging.warning(
            "%s and %s both have the config keys %s; one value goes to both", backbone.__name__, method, names
        )


def constructor_hints(backbone: type) -> dict[str, Any]:
    """Constructor keywords of a model class and its bases -> type hints (None where there is none)."""
    hints: dict[str, Any] = {}
    for cls in reversed(backbone.__mro__):
        if "__init__" in vars(cls) and cls.__module__.split(".")[0] != "torch":
            hints |= _keywords(vars(cls)["__init__"])
    return hints


def _keywords(constructor: Callable[..., None]) -> dict[str, Any]:
    try:
        annotated = get_type_hints(constructor)
    except Exception:  # hints that only a type checker can resolve
        annotated = {}
    hints = {}
    for name, parameter in inspect.signature(constructor).parameters.items():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            hint = annotated.get(name)
            # Many write `units: int = None` for a value that may be None.
            hints[name] = hint | None if isinstance(hint, type) and parameter.default is None else hint
    return {name: hint for name, hint in hints.items() if name not in ("self", "feature_map")}
