"""Arms, the things that a leaderboard compares: crossed, or as a plan file has them; digests of what they compute."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from fuxictr_llm import registry
from fuxictr_llm.common.checks import check_name, check_value
from fuxictr_llm.common.errors import UserError, nearest, unknown
from fuxictr_llm.common.files import digest_of, digests_of_files
from fuxictr_llm.config.language_models import asks_for_vectors
from fuxictr_llm.config.resolve import NOT_IN_IDENTITY, load_experiment
from fuxictr_llm.data import SPLITS
from fuxictr_llm.data.held import MANIFEST
from fuxictr_llm.data.loader import describe_data
from fuxictr_llm.data.raw import raw_files
from fuxictr_llm.data.splits import is_outdated, split_files
from fuxictr_llm.leaderboard.plan.names import PLAIN
from fuxictr_llm.training.networks import PLACES

ARM_KEYS = {"backbone": str, "dataset": str, "method": str | None, "control": str | None, "settings": dict[str, Any]}


def run_key(params: Mapping[str, Any]) -> str:
    """Digest of what a run with these settings computes.

    Of a key that names files, only whether there are any counts: a run without test data is another run. The content
    of the files is compared by `Results`.
    """
    kept = {key: value for key, value in params.items() if key not in NOT_IN_IDENTITY}
    return digest_of({key: bool(value) if key in PLACES else value for key, value in kept.items()})


def control_of(params: Mapping[str, Any]) -> str | None:
    """The placebo of its method that a run with these settings is; None where it is the method itself, or plain.

    Raises:
        UserError: the method is unknown.
    """
    declared = declared_controls(params)
    return next((name for name, settings in declared.items() if settings and has_settings(params, settings)), None)


def declared_controls(params: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """The placebos of its method, `Enhancement.controls`: name -> config keys.

    Raises:
        UserError: the method is unknown.
    """
    return registry.find_method(params["method"]).model_cls.controls if params.get("method") else {}


def controls_in_use(method: str, params: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The placebos of a method that take the place of something: not those of a part that its settings leave out.

    Args:
        method: its name.
        params: settings of the method itself, in which a part that is left out has null; of keys that are not there the
            method's default counts.

    Raises:
        UserError: the method is unknown.
    """
    known = registry.find_method(method)
    defaults = {key: field.default for key, field in getattr(known.config_cls, "__dataclass_fields__", {}).items()}
    own = {**defaults, **params}
    return {
        name: settings
        for name, settings in known.model_cls.controls.items()
        if not any(key in own and own[key] is None for key in settings)
    }


def has_settings(params: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether a run's params have all of the settings."""
    return all(params.get(key) == value for key, value in settings.items())


def language_model_work(params: Mapping[str, Any]) -> str | None:
    """Digest of what the language model's work for a run depends on; None: there is no work. Controls share it."""
    if not params["method"]:
        return digest_of([params["dataset_id"], PLAIN]) if asks_for_vectors(params) else None
    method = registry.find_method(params["method"])
    placebos = {key for settings in method.model_cls.controls.values() for key in settings} | {"control_seed"}
    sections = [cls for cls in method.config_cls.__mro__ if vars(cls).get("of_language_model")]
    keys = {key for cls in sections for key in vars(cls).get("__annotations__", ())} - {*placebos, "of_language_model"}
    if not sections:
        return None
    return digest_of([params["dataset_id"], params["method"], {key: params.get(key) for key in sorted(keys)}])


class Repeated:
    """A run, or what is known of one: its arm, seed, key and the number of its split (0: the data set's own)."""

    arm: "Arm"
    seed: int
    key: str
    split: int

    @property
    def repeat(self) -> int | tuple[int, int]:
        """What distinguishes it from other runs of its arm: the seed, or split and seed."""
        return (self.split, self.seed) if self.split else self.seed

    @property
    def repeat_text(self) -> str:
        """As `text_of_repeat`."""
        return text_of_repeat(self.repeat)


def text_of_repeat(repeat: int | tuple[int, int]) -> str:
    """`seed 3`, or `split 2, seed 3`."""
    return "split {}, seed {}".format(*repeat) if isinstance(repeat, tuple) else f"seed {repeat}"


@dataclass(frozen=True)
class Arm:
    """One of the things that are compared: a backbone on a data set, plain, with a method or with its placebo.

    Attributes:
        backbone, dataset: names as in an expid; of an alias (`criteo`) the name it stands for. The data set may be the
            end of a label in the config, with settings of its own.
        method: its name; None: the plain backbone.
        control: the placebo that runs in place of the method, one of `Enhancement.controls`.
        settings: the arm's own values of config keys: the control's, tuned ones.

    Raises:
        UserError: the method is an empty name, or the control's name cannot be part of a file's name.
    """

    backbone: str
    dataset: str
    method: str | None = None
    control: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        if self.method == "":
            raise unknown("method", "", [PLAIN, *registry.method_names()])
        if self.control is not None:
            check_name("control", self.control)

    @property
    def label(self) -> str:
        """What tables call it beside its backbone and data set: `plain`, `LLaCTR`, `LLaCTR random`."""
        return " ".join(filter(None, (self.method or PLAIN, self.control)))

    @property
    def expid(self) -> str:
        """The expid that it is a variant of."""
        return "_".join(filter(None, (self.backbone, self.method, self.dataset)))

    def __str__(self) -> str:
        return f"{self.backbone} {self.label} on {self.dataset}"


def cross(
    backbones: Sequence[str],
    datasets: Sequence[str],
    methods: Sequence[str] = (PLAIN,),
    controls: bool | Sequence[str] = False,
    config: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> list[Arm]:
    """The arms of every backbone with every method (and its controls) on every data set.

    Args:
        controls: whether all that a method declares; names: the first of these that it declares.
        overrides: settings of the plan, for all arms that know them.

    Raises:
        UserError: a method is unknown or declares none of the controls, or a name is given twice or not at all.
    """
    for kind, names in (("backbone", backbones), ("method", methods), ("data set", datasets)):
        refuse_twice(kind, names)
        if not names:
            raise UserError(f"the plan names no {kind}")
    arms: list[Arm] = []
    declared: set[str] = set()
    for dataset, backbone, method in product(datasets, backbones, methods):
        arm = Arm(backbone, dataset, None if method == PLAIN else method)
        placebos = controls_of(arm.method, arm.expid, config)
        if placebos and controls:
            params = load_experiment(arm.expid, config, threads=1).params
            placebos = controls_in_use(params["method"], {**params, **(overrides or {})})
            declared |= placebos.keys()
            if placebos and not isinstance(controls, bool):
                placebos = _first_of(controls, placebos, f"method {arm.method!r}")
        arms += [arm, *(replace(arm, control=name, settings=keys) for name, keys in placebos.items() if controls)]
    for name in () if isinstance(controls, bool) else controls:
        _first_of([name], {control: {} for control in declared}, "the methods of the plan")
    return arms


def _first_of(
    names: Sequence[str], placebos: Mapping[str, Mapping[str, Any]], where: str
) -> Mapping[str, Mapping[str, Any]]:
    """The placebo that is named first."""
    for name in names:
        if name in placebos:
            return {name: placebos[name]}
    raise unknown("control", " ".join(names), placebos, where)


def controls_of(method: str | None, expid: str = "", config: str | None = None) -> Mapping[str, Mapping[str, Any]]:
    """The placebos that a method declares: name -> config keys.

    Args:
        method: its name; None: no method.
        expid, config: an experiment with it, for a name that only a config knows; without one, that has no placebos.

    Raises:
        UserError: the method is unknown.
    """
    if method in (None, PLAIN):
        return {}
    names = registry.method_names()
    if PLAIN in nearest(method, [PLAIN, *names]):
        raise unknown("method", method, [PLAIN, *names])
    if method not in names:
        if not expid:
            return {}
        method = load_experiment(expid, config, threads=1).params["method"]
    return registry.find_method(method).model_cls.controls


def own_settings(arm: Arm, config: str | None) -> dict[str, Any]:
    """The settings of an arm without those of its control."""
    declared = controls_of(arm.method, arm.expid, config).get(arm.control, {}) if arm.control else {}
    return {key: value for key, value in arm.settings.items() if key not in declared or declared[key] != value}


def arm_from_entry(entry: Mapping[str, Any], config: str | None, where: str) -> Arm:
    """The arm of an entry of a plan file.

    Raises:
        UserError: a key or the control is unknown, a value is of the wrong type, or a key is missing.
    """
    where = f"an arm of {where}"
    check_keys(entry, ARM_KEYS, where)
    if missing := [key for key in ("backbone", "dataset") if key not in entry]:
        raise UserError(f"{where} lacks {missing[0]!r}: {dict(entry)}")
    arm = Arm(**entry)
    arm = replace(arm, method=None if arm.method == PLAIN else arm.method)
    if arm.control is None:
        return arm
    known = controls_of(arm.method, arm.expid, config)
    if arm.control not in known:
        raise unknown("control", arm.control, known, where=f"{where} with the method {arm.method or PLAIN}")
    return replace(arm, settings={**known[arm.control], **arm.settings})


def check_keys(given: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    """Check that every key is known, and its value of the right type.

    Raises:
        UserError: one is not.
    """
    for key, value in given.items():
        if key not in known:
            raise unknown("key", key, known, where)
        check_value(f"{key} of {where}", value, known[key])


def refuse_twice(kind: str, names: Sequence[Any]) -> None:
    """Refuse a list in which a name stands twice.

    Raises:
        UserError: one does.
    """
    for index, name in enumerate(names):
        if name in names[:index]:
            raise UserError(f"{kind} {str(name)!r} is given twice")


def data_digests(params: Mapping[str, Any]) -> dict[str, Any] | None:
    """Digests of the data set's files as they are now, in the form of a run record (`describe_data`).

    None: some are missing. Empty: those of a split were made from other files than are there now.
    """
    data_dir = Path(params["data_root"]) / params["dataset_id"]
    if params.get("resplit"):
        if is_outdated(params):
            return {}
        params = {**params, **split_files(params)}
    is_raw = params["data_format"] == "csv" or (params["data_format"] == "parquet" and params.get("rebuild_dataset"))
    raw = {split: params[f"{split}_data"] for split in SPLITS if params.get(f"{split}_data")}
    try:
        if not is_raw:
            return describe_data(params, data_dir)["sha256"]
        if (data_dir / "feature_map.json").exists() and not (data_dir / MANIFEST).exists():  # FuxiCTR built it
            built = {f"{split}_data": str(data_dir / f"{split}.parquet") for split in raw}
            return describe_data({"dataset_id": params["dataset_id"], **built}, data_dir)["sha256"]
        files = {split: raw_files(path, params["data_format"]) for split, path in raw.items()}
        return {split: digests_of_files(paths) for split, paths in files.items()}
    except (OSError, UserError):
        return None


def digest_of_data_keys(params: Mapping[str, Any]) -> str:
    """A digest of the config keys that `data_digests` depends on."""
    keys = ("dataset_id", "data_root", "data_format", "rebuild_dataset", "user_info", "item_info", "resplit")
    return digest_of({key: params.get(key) for key in (*keys, *(f"{split}_data" for split in SPLITS))})
