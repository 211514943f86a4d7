"""`--tune N`: every arm, plain and controls included, gets the same number of trials on validation AUC.

A trial runs without test data, so that its record shows that no test metric was looked at. Optuna's TPE proposes the
settings; its studies lie in the folder, and a killed search goes on with the trials that were under way.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from fuxictr_llm.errors import UserError
from fuxictr_llm.files import digest_of, explain_write_errors, replacing, writable_dir, write_json
from fuxictr_llm.leaderboard.engine import locked_folder
from fuxictr_llm.leaderboard.plan import Arm, Plan, PlannedRun
from fuxictr_llm.leaderboard.results import OTHER_OUT, Results
from fuxictr_llm.leaderboard.search_space import Range, Space, Values

if TYPE_CHECKING:
    from optuna import Study, Trial

METRIC = "AUC"
STUDIES = "studies"


def tune(
    plan: Plan, space: Space, trials: int, folder: Path | str, run: Callable[[Plan], Results], seed: int = 0
) -> Plan:
    """The plan with each arm at the settings that did best on validation.

    In each round every arm makes one trial; a repeated call goes on where the last one ended.

    Args:
        space: has been checked against the plan.
        trials: for each arm.
        folder: of the studies and of `tuning.json`, which says what was tried.
        run: runs what of a plan is not done yet.
        seed: of the search; the trials themselves have the seeds of the configs.

    Raises:
        UserError: Optuna is not installed, the folder cannot be written, or all trials of an arm failed.
    """
    folder = writable_dir(folder, OTHER_OUT)
    _warn_of_test_files(plan)
    with locked_folder(folder / STUDIES):  # so what a killed search left half done can be put right
        bases = trial_plan(plan, plan.arms, [{}] * len(plan.arms)).runs()
        searches = [
            _Search.of(base, arm, space.of(arm), folder, seed) for base, arm in zip(bases, plan.arms, strict=True)
        ]
        write_trials(folder, searches, trials)
        while asking := [search for search in searches if search.done < trials]:
            asked = [(search, *search.ask()) for search in asking]
            results = run(trial_plan(plan, [search.arm for search in asking], [settings for *_, settings in asked]))
            _tell(asked, results)
            write_trials(folder, searches, trials)
    for search in searches:
        if search.best(trials) is None:
            raise UserError(
                f"all {trials} trials of {search.arm} failed; the last: {search.tried(trials)[-1]['failed']}"
            )
    arms = [replace(of.arm, settings={**of.arm.settings, **of.best(trials)}) for of in searches]
    return replace(plan, arms=arms)


def trial_plan(plan: Plan, arms: Sequence[Arm], settings: Sequence[Mapping[str, Any]]) -> Plan:
    """Arms at the settings that are tried, without test data."""
    tried = [replace(arm, settings={**arm.settings, **of}) for arm, of in zip(arms, settings, strict=True)]
    return replace(plan, arms=tried, seeds=(), overrides={**plan.overrides, "test_data": None})


def write_trials(folder: Path, searches: Sequence["_Search"], trials: int) -> None:
    """Write `tuning.json`: the space, the trials and the best one of each arm."""
    arms = [
        {
            "arm": str(search.arm),
            "space": {key: _told(of) for key, of in search.space.items()},
            "best": search.best(trials),
            "trials": search.tried(trials),
        }
        for search in searches
    ]
    with explain_write_errors(folder, OTHER_OUT):
        write_json(folder / "tuning.json", {"metric": f"validation {METRIC}", "trials": trials, "arms": arms})


@dataclass
class _Search:
    """The search of one arm."""

    arm: Arm
    space: Mapping[str, Values]
    study: "Study"
    seed: int

    @classmethod
    def of(cls, base: PlannedRun, arm: Arm, space: Mapping[str, Values], folder: Path, seed: int) -> "_Search":
        """The study of exactly this search, as far as it has come; `base` is the arm's trial that changes nothing."""
        optuna = _optuna()
        digest = digest_of([base.key, {key: _told(of) for key, of in space.items()}, seed])
        path = folder / STUDIES / f"{base.experiment.expid}_{digest[:16]}.journal"
        with explain_write_errors(path, OTHER_OUT):
            _mend(path)
            storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
            study = optuna.create_study(study_name=str(arm), storage=storage, direction="maximize", load_if_exists=True)
        return cls(arm, space, study, seed)

    @property
    def done(self) -> int:
        """How many trials have ended, well or not."""
        return sum(trial.state.is_finished() for trial in self.study.get_trials(deepcopy=False))

    def ask(self) -> tuple["Trial", dict[str, Any]]:
        """The next trial and its settings; one that was under way when the process ended comes again."""
        optuna = _optuna()
        under_way = self.study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
        number = under_way[0].number if under_way else len(self.study.get_trials(deepcopy=False))
        # Seeded by number: what is proposed follows from the trials before, however often the search was ended.
        self.study.sampler = optuna.samplers.TPESampler(seed=(self.seed + number) % 2**32)
        trial = optuna.trial.Trial(self.study, under_way[0]._trial_id) if under_way else self.study.ask()
        for key, of in self.space.items():
            _suggest(trial, key, of)
        return trial, _settings(trial.params, self.space)

    def best(self, trials: int) -> dict[str, Any] | None:
        """The settings of the best of the first trials; None where none of them ended well."""
        finished = [trial for trial in self.tried(trials) if trial["valid_auc"] is not None]
        return max(finished, key=lambda trial: trial["valid_auc"])["settings"] if finished else None

    def tried(self, trials: int) -> list[dict[str, Any]]:
        """What is known of the first trials."""
        ended = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()][:trials]
        return [
            {"settings": _settings(trial.params, self.space), "valid_auc": trial.value, **trial.user_attrs}
            for trial in ended
        ]


def _warn_of_test_files(plan: Plan) -> None:
    """As on four boards of BARS: what is chosen on validation is chosen on the test set there."""
    params = {run.arm.dataset: run.experiment.params for run in plan.runs()}
    for dataset, of in params.items():
        if of.get("test_data") and of["test_data"] == of.get("valid_data"):
            logging.warning("%s: valid_data is the test file, so that --tune chooses on the test set", dataset)


def _tell(asked: Sequence[tuple[_Search, "Trial", dict[str, Any]]], results: Results) -> None:
    """Note in the studies how the trials did."""
    optuna = _optuna()
    finished = {str(result.arm): result for result in results.finished()}
    failed = {str(failure.arm): failure.reason for failure in results.failures()}
    for search, trial, _ in asked:
        result = finished.get(str(search.arm))
        value = result.metrics["valid"].get(METRIC, math.nan) if result else math.nan
        if result:
            trial.set_user_attr("test_metrics", dict(result.metrics["test"]))
            trial.set_user_attr("run", result.key)
        if math.isfinite(value):
            search.study.tell(trial, value)
            continue
        if not result and str(search.arm) not in failed:
            raise UserError(f"a trial of {search.arm} did not end; the same command goes on from there")
        trial.set_user_attr("failed", failed.get(str(search.arm), f"no validation {METRIC}"))
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
    return {key: params[key] if isinstance(of, Range) else json.loads(params[key]) for key, of in space.items()}


def _told(values: Values) -> Any:
    return vars(values) if isinstance(values, Range) else list(values)


def _mend(path: Path) -> None:
    """Take away the lock and the half line that a killed process may have left in a journal."""
    Path(f"{path}.lock").unlink(missing_ok=True)
    if path.exists():
        content = path.read_bytes()
        if not content.endswith(b"\n"):
            with replacing(path) as temporary:
                temporary.write_bytes(content[: content.rfind(b"\n") + 1])


def _optuna() -> ModuleType:
    try:
        import optuna
    except ImportError as error:
        raise UserError("--tune needs Optuna: pip install 'fuxictr-llm[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
