"""The space that `--tune` searches: which config keys of which arms may take which values.

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

    def check(self, plan: Plan) -> None:
        """Check that every arm has its keys, and that they take the values.

        Raises:
            UserError: a key is unknown for an arm, is one of the arm's own settings, is given by `--set` too, or takes
                no such value; a section belongs to no arm.
        """
        names = {name for arm in plan.arms for name in (arm.backbone, arm.method) if name}
        for name in self.sections:
            if name not in names:
                raise unknown("section", name, names, where="the search space")
        for arm in plan.arms:
            if not self.for_arm(arm):
                raise UserError(f"the search space has nothing for {arm}; every arm is tuned, or none")
            for key in self.for_arm(arm):
                if key in arm.settings:
                    raise UserError(f"the search space has {key!r}, which is what makes {arm}")
                if key in plan.overrides:
                    raise UserError(f"{key!r} is given with --set and in the search space; leave it out of one")
        for settings in zip_longest(*(_tried(self.for_arm(arm)) for arm in plan.arms)):
            pairs = zip(plan.arms, settings, strict=True)
            arms = [replace(arm, settings={**arm.settings, **tried}) for arm, tried in pairs if tried]
            replace(plan, arms=arms, seeds=())  # a plan says what does not fit


def read_space(path: Path | str, plan: Plan) -> Space:
    """The space in a YAML file, checked against the arms of a plan.

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
    space.check(plan)
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
