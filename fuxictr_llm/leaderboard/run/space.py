"""What a search may try, and for which arms.

    learning_rate: [1e-3, 5e-4]                                # every arm must have the key
    embedding_regularizer: {low: 1e-6, high: 1e-2, log: true}  # a range; of two whole numbers the whole ones between
    DeepFM: {net_dropout: [0, 0.2]}                            # arms of a backbone
    LLaCTR: {lambda_fre: [0.01, 0.1]}                          # arms of a method, its controls included

FuxiCTR's own tuner files are read as well: their `tuner_space`, in which a single value is fixed.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from fuxictr_llm.common.errors import UserError, unknown
from fuxictr_llm.common.formats import read_yaml
from fuxictr_llm.config.keys import DatasetKeys
from fuxictr_llm.config.resolve import NOT_IN_IDENTITY
from fuxictr_llm.leaderboard.plan.plan import Arm, Plan

METRIC = "AUC"
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
        prune: whether hopeless trials end before their time.
    """

    trials: int
    seeds: tuple[int, ...] = ()
    on: str | None = None
    prune: bool = False

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
            return replace(plan, arms=[with_settings(arm, settings[arm]) for arm in plan.arms])
        found = {_counterpart(arm): each for arm, each in settings.items()}
        return replace(plan, arms=[with_settings(arm, found[_counterpart(arm)]) for arm in plan.arms])

    def __str__(self) -> str:
        over = f", the mean over {len(self.seeds)} seeds" if self.seeds else ""
        of = f" of {self.on}" if self.on else ""
        pruned = ", the hopeless pruned" if self.prune else ""
        return f"{self.trials} trials on validation {METRIC}{over}, for each arm{of}{pruned}"


def _counterpart(arm: Arm) -> tuple[str, str]:
    return arm.dataset, arm.label


def with_settings(arm: Arm, settings: Mapping[str, Any]) -> Arm:
    """The arm with these settings too."""
    return replace(arm, settings={**arm.settings, **settings})
