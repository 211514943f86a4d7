"""`--tune N`: every arm, plain and controls included, gets the same number of trials on validation AUC.

The space that is searched says which config keys of which arms may take which values:

    learning_rate: [1e-3, 5e-4]                                # every arm must have the key
    embedding_regularizer: {low: 1e-6, high: 1e-2, log: true}  # a range; of two whole numbers the whole ones between
    DeepFM: {net_dropout: [0, 0.2]}                            # arms of a backbone
    LLaCTR: {lambda_fre: [0.01, 0.1]}                          # arms of a method, its controls included

FuxiCTR's own tuner files are read as well: their `tuner_space`, in which a single value is fixed.

A trial runs without test data, so that its record shows that no test metric was looked at. Optuna's TPE proposes the
settings. What it proposes follows from the trials before: a search that is started again proposes the same ones, and
takes from the folder the runs that are there. Nothing else keeps track of how far a search has come.
"""

import json
import logging
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fuxictr_llm.common.errors import UserError, unknown
from fuxictr_llm.common.files import explain_write_errors, read_json, writable_dir, write_json
from fuxictr_llm.common.formats import read_yaml
from fuxictr_llm.config.keys import DatasetKeys
from fuxictr_llm.config.resolve import NOT_IN_IDENTITY
from fuxictr_llm.leaderboard.plan.plan import Arm, Plan
from fuxictr_llm.leaderboard.run.results import OTHER_OUT, Results

if TYPE_CHECKING:
    from optuna import Trial

METRIC = "AUC"
TUNING_FOLDER, TRIALS_FILE = "tuning", "tuning.json"  # of the search in a leaderboard's folder, and in it
TUNER_SPACE = "tuner_space"
# Fixed in many of FuxiCTR's files; a leaderboard has its own.
LEADERBOARD_KEYS = {"model_root", "seed"}
NOT_TUNED = {
    "seed": "every arm runs at the plan's seeds",
    "model": "name backbones in the plan",
    "method": "name methods in the plan",
    "model_root": "the leaderboard's folder decides",
    **dict.fromkeys((*NOT_IN_IDENTITY, "num_threads"), "it does not change what is learnt"),
    **dict.fromkeys(DatasetKeys.__annotations__, "it is of the data set, which all arms share"),
}


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, both included."""

    low: float
    high: float
    log: bool = False


Values = Range | tuple[Any, ...]


@dataclass(frozen=True)
class Space:
    """What may be tried.

    Attributes:
        common: of every arm.
        sections: of the arms of a backbone or a method, by its name.
    """

    common: Mapping[str, Values]
    sections: Mapping[str, Mapping[str, Values]] = field(default_factory=dict)

    def for_arm(self, arm: Arm) -> dict[str, Values]:
        """What may be tried for an arm."""
        values = dict(self.common)
        for name in filter(None, (arm.backbone, arm.method)):
            values |= self.sections.get(name, {})
        return values

    def check(self, plan: Plan, tuning: "Tuning | None" = None) -> None:
        """Check that every arm has its keys, and that they take the values.

        Args:
            tuning: which arms are searched; None: all.

        Raises:
            UserError: a key is unknown for an arm, is one of the arm's own settings, is given by `--set` too, or takes
                no such value; a section belongs to no arm.
        """
        tuning = tuning or Tuning(0)
        arms = tuning.searched(plan).arms
        names = {name for arm in arms for name in (arm.backbone, arm.method) if name}
        for name in self.sections:
            if name not in names:
                raise unknown("section", name, names, where="the search space")
        for arm in arms:
            if not self.for_arm(arm):
                raise UserError(f"the search space has nothing for {arm}; every arm is tuned, or none")
            for key in self.for_arm(arm):
                if key in arm.settings:
                    raise UserError(f"the search space has {key!r}, which is what makes {arm}")
                if key in plan.overrides:
                    raise UserError(f"{key!r} is given with --set and in the search space; leave it out of one")
        for settings in zip_longest(*(_tried(self.for_arm(arm)) for arm in arms), fillvalue={}):
            # A plan says what does not fit.
            tuning.spread(replace(plan, seeds=()), dict(zip(arms, settings, strict=True)))


def read_space(path: Path | str, plan: Plan, tuning: "Tuning | None" = None) -> Space:
    """The space in a YAML file, checked against the arms of a plan, or those of them that are tuned.

    Raises:
        UserError: the file cannot be read, has another form, or does not fit an arm.
    """
    given, where = read_yaml(path), repr(str(path))
    if TUNER_SPACE in given:
        space = _space_of_tuner(given, where)
    else:
        sections = {key: value for key, value in given.items() if isinstance(value, dict) and "low" not in value}
        common = {key: value for key, value in given.items() if key not in sections}
        space = Space(_entries(common, where), {name: _entries(section, where) for name, section in sections.items()})
    if not space.common and not any(space.sections.values()):
        raise UserError(f"{where} names nothing to tune; for example: learning_rate: [1e-3, 5e-4]")
    space.check(plan, tuning)
    return space


def _space_of_tuner(given: Mapping[str, Any], where: str) -> Space:
    tuned = given[TUNER_SPACE]
    if not isinstance(tuned, dict):
        raise UserError(f"{TUNER_SPACE} of {where} must map keys to values (got {tuned!r})")
    others = sorted((given.keys() - {TUNER_SPACE}) | (tuned.keys() & LEADERBOARD_KEYS))
    if others:
        logging.info("of %s only %s is read, for the plan's own arms; not: %s", where, TUNER_SPACE, ", ".join(others))
    kept = {key: value for key, value in tuned.items() if key not in LEADERBOARD_KEYS}
    return Space(_entries({key: value if isinstance(value, list) else [value] for key, value in kept.items()}, where))


def _entries(given: Mapping[str, Any], where: str) -> dict[str, Values]:
    return {key: _values(key, value, f"{key!r} of {where}") for key, value in given.items()}


def _values(key: str, value: Any, where: str) -> Values:
    if key in NOT_TUNED:
        raise UserError(f"{where} cannot be tuned: {NOT_TUNED[key]}")
    if isinstance(value, list):
        if not value or any(one in value[:index] for index, one in enumerate(value)):
            raise UserError(f"{where} must list different values (got {value})")
        return tuple(value)
    if isinstance(value, dict):
        return _range(value, where)
    raise UserError(f"{where} must be a list of values, or low and high (got {value!r})")


def _range(value: Mapping[str, Any], where: str) -> Range:
    if not {"low", "high"} <= value.keys() <= {"low", "high", "log"}:
        raise UserError(f"{where} must have low, high and perhaps log (got {dict(value)})")
    low, high, log = value["low"], value["high"], value.get("log", False)
    if not all(type(end) in (int, float) and math.isfinite(end) for end in (low, high)):
        raise UserError(f"{where}: low and high must be numbers (got {dict(value)})")
    if not low < high or not isinstance(log, bool) or (log and low <= 0):
        raise UserError(f"{where}: low must be below high, and above 0 with log: true (got {dict(value)})")
    return Range(low, high, log)


def _tried(values: Mapping[str, Values]) -> Iterable[dict[str, Any]]:
    """Settings in which every listed value and both ends of every range occur."""
    choices: list[Sequence[Any]] = [
        (each.low, each.high) if isinstance(each, Range) else each for each in values.values()
    ]
    for index in range(max(map(len, choices))):
        yield {key: each[min(index, len(each) - 1)] for key, each in zip(values, choices, strict=True)}


@dataclass(frozen=True)
class Tuning:
    """How settings are searched.

    Attributes:
        trials: for each arm.
        seeds: of every trial, whose validation AUC is their mean; empty: that of the config.
        on: a backbone; what is best on it is for the arms of the others, too. None: each arm has a search of its own.
    """

    trials: int
    seeds: tuple[int, ...] = ()
    on: str | None = None

    def searched(self, plan: Plan) -> Plan:
        """The part of a plan whose arms are tuned.

        Raises:
            UserError: the plan has no such backbone, or an arm of another one has no counterpart on it.
        """
        if self.on is None:
            return plan
        arms = [arm for arm in plan.arms if arm.backbone == self.on]
        if not arms:
            raise unknown("backbone", self.on, {arm.backbone for arm in plan.arms}, where="the plan's arms")
        known = {_counterpart(arm) for arm in arms}
        if alone := [arm for arm in plan.arms if _counterpart(arm) not in known]:
            raise UserError(f"{alone[0]} has no counterpart of {self.on}, on which settings are searched")
        return replace(plan, arms=arms)

    def spread(self, plan: Plan, settings: Mapping[Arm, Mapping[str, Any]]) -> Plan:
        """The plan with the settings of the arms that were searched."""
        if self.on is None:
            return replace(plan, arms=[_with(arm, settings[arm]) for arm in plan.arms])
        found = {_counterpart(arm): each for arm, each in settings.items()}
        return replace(plan, arms=[_with(arm, found[_counterpart(arm)]) for arm in plan.arms])

    def __str__(self) -> str:
        over = f", the mean over {len(self.seeds)} seeds" if self.seeds else ""
        return f"{self.trials} trials on validation {METRIC}{over}, for each arm" + (f" of {self.on}" * bool(self.on))


def _counterpart(arm: Arm) -> tuple[str, str]:
    return arm.dataset, arm.label


def _with(arm: Arm, settings: Mapping[str, Any]) -> Arm:
    return replace(arm, settings={**arm.settings, **settings})


def tune_arms(
    plan: Plan, space: Space, tuning: Tuning, folder: Path | str, run: Callable[[Plan], Results], seed: int = 0
) -> Plan:
    """Search the best settings of each arm on validation; the plan with them.

    In each round every arm makes one trial; a repeated call goes on where the last one ended.

    Args:
        space: has been checked against the plan.
        folder: of `tuning.json`, which says what was tried.
        run: runs what of a plan is not done yet.
        seed: of the search.

    Raises:
        UserError: Optuna is not installed, the folder cannot be written, or all trials of an arm failed.
    """
    folder = writable_dir(folder, OTHER_OUT)
    _warn_of_test_files(plan)
    searched = tuning.searched(plan)
    searches = [_Search(arm, space.for_arm(arm), seed) for arm in searched.arms]
    for _ in range(tuning.trials):
        asked = [(search, *search.ask()) for search in searches]
        _note_results(asked, run(trial_plan(searched, [settings for *_, settings in asked], tuning.seeds)))
        write_trials(folder, searches, tuning)
    best = {}
    for search in searches:
        if (settings := search.best()) is None:
            last = search.tried()[-1]["failed"]
            raise UserError(f"all {tuning.trials} trials of {search.arm} failed; the last: {last}")
        best[search.arm] = settings
    return tuning.spread(plan, best)


def trial_plan(plan: Plan, settings: Sequence[Mapping[str, Any]], seeds: Sequence[int] = ()) -> Plan:
    """The arms at the settings that are tried, without test data."""
    pairs = zip(plan.arms, settings, strict=True)
    tried = [_with(arm, {**trial, "test_data": None}) for arm, trial in pairs]
    return replace(plan, arms=tried, seeds=seeds, splits=0, split_by=None)  # on the data set's own split


def write_trials(folder: Path, searches: Sequence["_Search"], tuning: Tuning) -> None:
    """Write `tuning.json`: the space, the trials and the best one of each arm."""
    arms = [
        {
            "arm": str(search.arm),
            "space": {key: _values_for_json(values) for key, values in search.space.items()},
            "best": search.best(),
            "trials": search.tried(),
        }
        for search in searches
    ]
    with explain_write_errors(folder, OTHER_OUT):
        write_json(folder / TRIALS_FILE, {"metric": f"validation {METRIC}", **asdict(tuning), "arms": arms})


def tuned_by(folder: Path, plan: Plan) -> str:
    """How the plan's settings were searched, by the file of a search's folder; empty: they are not from there."""
    try:
        search = read_json(folder / TRIALS_FILE) or {}
        tuning = Tuning(search["trials"], tuple(search["seeds"]), search["on"])
        best = {arm["arm"]: arm["best"] for arm in search["arms"]}
        found = {arm: best[str(arm)] for arm in tuning.searched(plan).arms}
        is_best = tuning.spread(plan, found).arms == plan.arms
        return str(tuning) if is_best else ""
    except (AttributeError, KeyError, TypeError, UserError):  # not there, damaged, or of other arms
        return ""


class _Search:
    """The search of one arm."""

    def __init__(self, arm: Arm, space: Mapping[str, Values], seed: int):
        optuna = _optuna()
        self.arm, self.space = arm, space
        self.study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))

    def ask(self) -> tuple["Trial", dict[str, Any]]:
        """The next trial and its settings."""
        trial = self.study.ask()
        for key, values in self.space.items():
            _suggest(trial, key, values)
        return trial, _settings(trial.params, self.space)

    def best(self) -> dict[str, Any] | None:
        """The settings of the best trial; None where all failed."""
        finished = [trial for trial in self.tried() if trial["valid_auc"] is not None]
        return max(finished, key=lambda trial: trial["valid_auc"])["settings"] if finished else None

    def tried(self) -> list[dict[str, Any]]:
        """Settings, validation AUC and further notes of each trial."""
        return [
            {"settings": _settings(trial.params, self.space), "valid_auc": trial.value, **trial.user_attrs}
            for trial in self.study.trials
        ]


def _warn_of_test_files(plan: Plan) -> None:
    """Where validation is the test file, as on four boards of BARS, the settings are chosen on the test set."""
    for dataset, params in {run.arm.dataset: run.experiment.params for run in plan.runs()}.items():
        if params.get("test_data") and params["test_data"] == params.get("valid_data"):
            logging.warning("%s: valid_data is the test file, so that --tune chooses on the test set", dataset)


def _note_results(asked: Sequence[tuple[_Search, "Trial", dict[str, Any]]], results: Results) -> None:
    """Tell the studies how the trials did."""
    optuna = _optuna()
    finished = defaultdict(list)
    for result in results.finished():
        finished[str(result.arm)].append(result)
    failed = {str(failure.arm): failure.reason for failure in results.failures()}
    planned = Counter(str(run.arm) for run in results.plan.runs())
    for search, trial, _ in asked:
        name = str(search.arm)
        runs, reason = finished[name], failed.get(name)
        if reason is None and len(runs) < planned[name]:
            raise UserError(f"a trial of {search.arm} did not end; the same command goes on from there")
        trial.set_user_attr("test_metrics", {key: value for run in runs for key, value in run.metrics["test"].items()})
        trial.set_user_attr("runs", [run.key for run in runs])
        value = math.nan
        if reason is None:
            value = statistics.fmean(run.metrics["valid"].get(METRIC, math.nan) for run in runs)
        if math.isfinite(value):
            search.study.tell(trial, value)
            continue
        trial.set_user_attr("failed", reason or f"no validation {METRIC}")
        search.study.tell(trial, state=optuna.trial.TrialState.FAIL)


def _suggest(trial: "Trial", key: str, values: Values) -> None:
    if not isinstance(values, Range):
        # Optuna's choices are texts and numbers; ours may be lists.
        trial.suggest_categorical(key, [json.dumps(value) for value in values])
    elif isinstance(values.low, int) and isinstance(values.high, int):
        trial.suggest_int(key, values.low, values.high, log=values.log)
    else:
        trial.suggest_float(key, values.low, values.high, log=values.log)


def _settings(params: Mapping[str, Any], space: Mapping[str, Values]) -> dict[str, Any]:
    """Optuna's parameters as config keys."""
    return {key: params[key] if isinstance(values, Range) else json.loads(params[key]) for key, values in space.items()}


def _values_for_json(values: Values) -> dict[str, Any] | list[Any]:
    return vars(values) if isinstance(values, Range) else list(values)


def _optuna() -> ModuleType:
    try:
        import optuna
    except ImportError as error:
        raise UserError("--tune needs Optuna: pip install 'fuxictr-llm[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
