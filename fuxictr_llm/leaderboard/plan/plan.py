"""What a leaderboard runs: arms (a backbone on a data set, plain or with a method or its placebo) at several seeds.

Their order is that of `queue.Queue`.
"""

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import StrictBool

from fuxictr_llm import registry
from fuxictr_llm.common.checks import check_value
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of
from fuxictr_llm.common.formats import dump_yaml, read_yaml
from fuxictr_llm.config.keys import Positive, Seed, SplitBy
from fuxictr_llm.config.resolve import Experiment, known_keys, load_experiment
from fuxictr_llm.data import SPLITS
from fuxictr_llm.data.build import BUILD_KEYS
from fuxictr_llm.data.prepare import PREPARERS
from fuxictr_llm.data.splits import split_params
from fuxictr_llm.host.checkout import use_checkout
from fuxictr_llm.leaderboard.plan.arms import (
    PLAIN,
    Arm,
    Repeated,
    arm_from_entry,
    check_keys,
    cross,
    declared_controls,
    has_settings,
    language_model_work,
    own_settings,
    refuse_twice,
    run_key,
)

# The config keys that the files of a data set depend on.
DATA_SET_KEYS = (
    *BUILD_KEYS,
    "feature_processor",
    "prepare",
    "raw_data",
    "resplit",
    "time_column",
    *(f"{split}_data" for split in SPLITS),
)
DATA_SET_KEYS += tuple(sorted({key for preparer in PREPARERS.values() for key in preparer.keys}))
Names = list[str]
PLAN_KEYS = {
    "backbones": Names,
    "methods": Names,
    "datasets": Names,
    "controls": StrictBool | Names,
    "arms": list[dict[str, Any]],
    "config": str | None,
    "zoo": str | None,
    "set": dict[str, Any],
    "splits": Positive,
    "split_by": SplitBy,
}


@dataclass(frozen=True)
class PlannedRun(Repeated):
    """An arm at a seed.

    Attributes:
        experiment: what is run.
        key: digest of what it computes, whatever data lies where, and wherever the results are written.
        language_model: digest of what it asks of a language model, the same for runs that share the answer;
            None: nothing.
        split: number of the split of its data, from 1 on; 0: the data set's own.
    """

    arm: Arm
    seed: int
    experiment: Experiment
    key: str
    language_model: str | None = None
    split: int = 0

    @property
    def data_set(self) -> str:
        """The folder of its built data set, which is built once for all runs on it."""
        return str(Path(self.experiment.params["data_root"]) / self.experiment.params["dataset_id"])

    @property
    def name(self) -> str:
        """What its files are called."""
        parts = (self.experiment.expid, self.arm.control, f"s{self.seed}", self.key[:8])
        return "_".join(filter(None, parts))

    def __str__(self) -> str:
        return f"{self.arm}, {self.repeat_text}"


@dataclass(frozen=True)
class Plan:
    """Arms and seeds, every one of which is known and fits its settings.

    Attributes:
        arms: no two have the same label, backbone and data set.
        seeds: each arm runs at every one; empty: each at that of its config.
        config: as `--config`.
        zoo: as `--zoo`.
        overrides: settings of all arms that have such a key.
        splits: on so many further splits of its data each arm runs at every seed; 0: on the data set's own split.
        split_by: `random` or `time`; None: `time` for data in the order of time.
        gpu: index of the GPU, -1 for the CPU.

    Raises:
        UserError: something is unknown, does not fit, or is given twice.
    """

    arms: Sequence[Arm]
    seeds: Sequence[int] = ()
    config: str | None = None
    zoo: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    gpu: int = -1
    splits: int = 0
    split_by: str | None = None
    _runs: tuple[PlannedRun, ...] = field(init=False, repr=False, compare=False)
    _known_to_any: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        use_checkout(self.zoo)
        if self.splits < 0 or self.splits == 1:
            raise UserError(f"--splits {self.splits} is no number of splits that could be compared; give 2 or more")
        if self.split_by and not self.splits:
            raise UserError(f"--split-by {self.split_by} needs --splits K")
        if not self.arms:
            raise UserError("the plan has no arms; name --backbones and --datasets")
        for seed in self.seeds:
            check_value("seed", seed, Seed)
        refuse_twice("seed", self.seeds)
        if "seed" in self.overrides:
            raise UserError("seed cannot be changed with --set; give --seeds, or --seed for a single one")
        if with_seed := [arm for arm in self.arms if "seed" in arm.settings]:
            raise UserError(
                f"{with_seed[0]}: seed is no setting of an arm, all run at the same ones; give them as seeds"
            )
        bases = [load_experiment(arm.expid, self.config, gpu=self.gpu, threads=1) for arm in self.arms]
        for arm, base in zip(self.arms, bases, strict=True):
            _refuse_other_name(arm, base)
        arms = [self._named(arm, base) for arm, base in zip(self.arms, bases, strict=True)]
        refuse_twice("arm", [f"{arm}" for arm in arms])
        object.__setattr__(self, "arms", tuple(arms))
        known = [self._known_keys(arm, base) for arm, base in zip(arms, bases, strict=True)]
        object.__setattr__(self, "_known_to_any", frozenset().union(*known))
        runs = map(self._planned_arm, arms, bases, known)
        object.__setattr__(self, "_runs", tuple(chain.from_iterable(runs)))
        _refuse_two_builds(self._runs)

    @classmethod
    def crossed(
        cls,
        backbones: Sequence[str],
        datasets: Sequence[str],
        methods: Sequence[str] = (PLAIN,),
        *,
        controls: bool | Sequence[str] = False,
        **others: Any,
    ) -> "Plan":
        """Every backbone with every method on every data set.

        Args:
            methods: names of methods; `plain` is the backbone without one.
            controls: whether each method's placebos run as well; names: of each method the first that it declares.
            others: of the plan itself.

        Raises:
            UserError: something is unknown, does not fit, or is given twice.
        """
        use_checkout(others.get("zoo"))
        return cls(
            cross(backbones, datasets, methods, controls, others.get("config"), others.get("overrides")), **others
        )

    @classmethod
    def read(cls, path: Path | str, gpu: int = -1) -> "Plan":
        """The plan of a YAML file: with the keys `backbones`, `methods`, `datasets` and `controls`, or `arms`, or both.

        Raises:
            UserError: it cannot be read, or as above.
        """
        given, where = read_yaml(path), repr(str(path))
        type_of_seeds = list[Seed] if isinstance(given.get("seeds"), list) else Positive
        check_keys(given, {**PLAN_KEYS, "seeds": type_of_seeds}, where)
        use_checkout(given.get("zoo"))
        config = given.get("config")
        arms = [arm_from_entry(entry, config, where) for entry in given.get("arms", ())]
        if given.keys() & {"backbones", "methods", "datasets", "controls"}:
            names = (given.get("backbones", []), given.get("datasets", []), given.get("methods", [PLAIN]))
            arms = [*cross(*names, given.get("controls", False), config, given.get("set")), *arms]
        seeds, splits = seeds_of(given.get("seeds", [])), (given.get("splits", 0), given.get("split_by"))
        return cls(arms, seeds, config, given.get("zoo"), given.get("set", {}), gpu, *splits)

    def to_yaml(self) -> str:
        """The plan as a file that `read` takes."""
        arms = []
        for arm in self.arms:
            names = {"backbone": arm.backbone, "method": arm.method, "control": arm.control, "dataset": arm.dataset}
            parts = {**names, "settings": own_settings(arm, self.config)}
            arms.append({key: value for key, value in parts.items() if value})
        others: dict[str, Any] = {
            "config": self.config,
            "zoo": self.zoo,
            "set": dict(self.overrides),
            "seeds": list(self.seeds),
        }
        others |= {"splits": self.splits, "split_by": self.split_by}
        return dump_yaml({**{key: value for key, value in others.items() if value}, "arms": arms})

    def runs(self) -> tuple[PlannedRun, ...]:
        """Every arm at every seed. Two that compute the same have the same key."""
        return self._runs

    def with_arm(self, index: int, arm: Arm) -> "Plan":
        """The plan with this arm in place of that at the index, which has the same label, backbone and data set.

        Only this arm is resolved anew.

        Raises:
            UserError: a setting of it does not fit.
        """
        base = load_experiment(arm.expid, self.config, gpu=self.gpu, threads=1)
        own = list(self._planned_arm(arm, base, self._known_keys(arm, base)))
        runs = [own if each is self.arms[index] else self._runs_of(each) for each in self.arms]
        changed = copy.copy(self)
        changed.__dict__.pop("sha256", None)
        object.__setattr__(changed, "arms", (*self.arms[:index], arm, *self.arms[index + 1 :]))
        object.__setattr__(changed, "_runs", tuple(chain.from_iterable(runs)))
        _refuse_two_builds(changed._runs)
        return changed

    def _runs_of(self, arm: Arm) -> list[PlannedRun]:
        return [run for run in self._runs if run.arm is arm]

    @cached_property
    def sha256(self) -> str:
        """Digest of the arms' names and of what each run computes."""
        return digest_of(sorted(f"{run.arm} {run.key}" for run in self.runs()))

    def _named(self, arm: Arm, base: Experiment) -> Arm:
        """An alias of a data set becomes what it stands for; a label with settings of its own stays."""
        canonical = replace(arm, dataset=base.params["dataset_id"])
        if canonical.expid == arm.expid:
            return arm
        try:
            stands_for = load_experiment(canonical.expid, self.config, gpu=self.gpu, threads=1).params
        except UserError:  # a config in FuxiCTR's form knows its labels alone
            return arm
        return canonical if stands_for == base.params else arm

    def _known_keys(self, arm: Arm, base: Experiment) -> frozenset[str]:
        """Which keys are known depends on other settings, as on columns that ask for vectors."""
        return frozenset(known_keys({**base.params, **self.overrides, **arm.settings}))

    def _planned_arm(self, arm: Arm, base: Experiment, keys: frozenset[str]) -> Iterable[PlannedRun]:
        # A key that no arm knows is left in, and is an error when the experiment is resolved.
        common = {k: v for k, v in self.overrides.items() if k in keys or k not in self._known_to_any}
        overrides = {**common, **arm.settings}
        experiment = self._resolved(arm, overrides) if overrides else base
        _refuse_disguise(arm, experiment.params)
        # A placebo is drawn anew for each seed, so that no lucky draw decides.
        redrawn = arm.control and "control_seed" in keys and "control_seed" not in overrides
        for split, data in self._on_splits(experiment.params):
            for seed in self.seeds or (base.params["seed"],):
                params = {**data, "seed": seed, **({"control_seed": seed} if redrawn else {})}
                work = language_model_work(params)
                yield PlannedRun(arm, seed, replace(experiment, params=params), run_key(params), work, split)

    def _on_splits(self, params: dict[str, Any]) -> Iterable[tuple[int, dict[str, Any]]]:
        """The settings on each split, by its number."""
        if not self.splits:
            return [(0, params)]
        numbers = range(1, self.splits + 1)
        return [(number, split_params(params, self.split_by, number, self.splits)) for number in numbers]

    def _resolved(self, arm: Arm, overrides: Mapping[str, Any]) -> Experiment:
        try:
            return load_experiment(arm.expid, self.config, overrides=overrides, gpu=self.gpu, threads=1)
        except UserError as error:
            raise UserError(f"{arm}: {error}") from error


def seeds_of(given: int | Sequence[int]) -> list[int]:
    """A number N stands for the seeds 1 to N, a list for itself.

    Raises:
        UserError: N is less than 1.
    """
    if not isinstance(given, int):
        return list(given)
    if given < 1:
        raise UserError(f"--seeds {given} is no number of seeds; for a single seed give --seed")
    return list(range(1, given + 1))


def _refuse_other_name(arm: Arm, base: Experiment) -> None:
    """Refuse a label whose model or method has another name than the arm, which the tables would show."""
    for kind, called, known in (
        ("model", arm.backbone, registry.backbone_names()),
        ("method", arm.method, registry.method_names()),
    ):
        actual = base.params[kind]
        # Names of the user's own, and BARS's (`AutoInt+`), stand for whatever the config says.
        if actual != called and (called is None or (called in known and actual in (None, *known))):
            raise UserError(
                f"{arm}: expid {base.expid!r} has {kind}: {actual}, which the table would call {called or PLAIN}; "
                "rename it"
            )


def _refuse_disguise(arm: Arm, params: Mapping[str, Any]) -> None:
    """Refuse an arm with a placebo's settings under another name, or without them under its name."""
    for name, settings in declared_controls(params).items():
        is_that = has_settings(params, settings)
        if is_that != (name == arm.control):
            given = ", ".join(f"{key}: {params.get(key)}" for key in settings)
            does = "makes it the control" if is_that else "is not the control"
            raise UserError(f"{arm}: {given} {does} {name!r}; leave it out, and have controls run with --controls")


def _refuse_two_builds(runs: Iterable[PlannedRun]) -> None:
    """Refuse runs that would build different data in one folder, as they may run at the same time."""
    built: dict[tuple[str, str], tuple[PlannedRun, dict[str, Any]]] = {}
    for run in runs:
        params = run.experiment.params
        own = {key: params.get(key) for key in DATA_SET_KEYS}
        first, others = built.setdefault((params["data_root"], params["dataset_id"]), (run, own))
        if differs := [key for key in own if own[key] != others[key]]:
            raise UserError(
                f"{run.arm} and {first.arm} would build {params['dataset_id']!r} from another {differs[0]} each; "
                "give them data sets of different names"
            )
