"""`--tune N`: every arm, plain and controls included, gets the same number of trials on validation AUC.

A trial runs without test data, so that its record shows that no test metric was looked at. Optuna's TPE proposes the
settings. An arm asks for its next trial when its last one has ended, whatever the other arms do: nothing waits for the
end of a round, and what TPE proposes follows from the arm's own trials before, in their order. So a search that is
started again proposes the same ones, and takes from the folder the runs that are there. Nothing else keeps track of how
far a search has come.
"""

import itertools
import json
import logging
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import explain_write_errors, read_json, writable_dir, write_json
from fuxictr_llm.leaderboard.plan.plan import Arm, Plan, PlannedRun
from fuxictr_llm.leaderboard.run.pruning import Curve, curve_of, ends_so, optuna_module
from fuxictr_llm.leaderboard.run.results import OTHER_OUT, Results
from fuxictr_llm.leaderboard.run.space import METRIC, Range, Space, Tuning, Values, with_settings

if TYPE_CHECKING:
    from optuna import Trial

TUNING_FOLDER, TRIALS_FILE = "tuning", "tuning.json"  # of the search in a leaderboard's folder, and in it


def tune_arms(
    plan: Plan,
    space: Space,
    tuning: Tuning,
    folder: Path | str,
    run: Callable[["Trials"], None],
    seed: int = 0,
    retry_failed: bool = False,
) -> Plan:
    """Search the best settings of each arm on validation; the plan with them.

    A repeated call goes on where the last one ended.

    Args:
        space: has been checked against the plan.
        folder: of `tuning.json`, which says what was tried.
        run: runs the trials until there are none left.
        seed: of the search.
        retry_failed: whether runs that failed before this call are tried again.

    Raises:
        UserError: Optuna is not installed, the folder cannot be written, all trials of an arm failed, or one did not
            end.
    """
    folder = writable_dir(folder, OTHER_OUT)
    _warn_of_test_files(plan)
    searched = tuning.searched(plan)
    searches = [_Search(arm, space.for_arm(arm), tuning.trials, seed) for arm in searched.arms]
    run(Trials(searched, searches, tuning, folder, retry_failed))
    best = {}
    for search in searches:
        if search.asked is not None:
            raise UserError(f"a trial of {search.arm} did not end; the same command goes on from there")
        if (settings := search.best()) is None:
            last = search.tried()[-1]["failed"]
            raise UserError(f"all {tuning.trials} trials of {search.arm} failed; the last: {last}")
        best[search.arm] = settings
    return tuning.spread(plan, best)


class Trials:
    """The trials of all arms, as the engine's agenda: when one has ended, its arm's next one is to do.

    Attributes:
        plan: the trial of each arm that is under way, or was the last.
    """

    def __init__(
        self, plan: Plan, searches: Sequence["_Search"], tuning: Tuning, folder: Path, retry_failed: bool = False
    ):
        self.tuning, self.folder, self.retry_failed = tuning, folder, retry_failed
        self._searches = list(searches)
        self.plan = trial_plan(plan, [search.ask() for search in searches], tuning.seeds)
        self._left: dict[int, dict[str, PlannedRun]] = {}  # of each arm's trial under way: its runs by their keys
        self._ended: set[str] = set()

    def to_do(self, results: Results) -> list[PlannedRun]:
        """The runs of the trials under way that are neither done nor failed; those of later ones, where all are."""
        for index in range(len(self._searches)):
            self._advance(index, results)
        return list(self._waiting().values())

    def after(self, results: Results, run: PlannedRun) -> list[PlannedRun]:
        """The runs of an arm's next trial, where the run was the last of the trial before."""
        self._ended.add(run.key)
        before = self._waiting().keys()
        for index, left in self._left.items():  # two arms may have the same run
            if left.pop(run.key, None) and not left:
                self._advance(index, results)
        return [new for key, new in self._waiting().items() if key not in before]

    def others(self, run: PlannedRun) -> tuple[Curve, ...] | None:
        """The curves beside which a trial's first seed is pruned; None: it is not."""
        if not self.tuning.prune or (self.tuning.seeds and run.seed != self.tuning.seeds[0]):
            return None
        return next(tuple(self._searches[index].curves) for index, left in self._left.items() if run.key in left)

    def _pruned(self, search: "_Search", run: PlannedRun, results: Results) -> Curve | None:
        """The curve of a trial's first run, where it was pruned, in this search or as it would be in it."""
        curve = results.curve_of_pruned(run) if self.tuning.prune else None
        return curve if curve and (run.key in self._ended or ends_so(curve, search.curves)) else None

    def _waiting(self) -> dict[str, PlannedRun]:
        return {key: run for left in self._left.values() for key, run in left.items()}

    def _advance(self, index: int, results: Results) -> None:
        """Note the trials of an arm that have ended, up to the first that has not, if any is left."""
        search = self._searches[index]
        self._left[index] = {}
        while search.asked is not None:
            results.plan = self.plan
            runs = {run.key: run for run in self.plan.runs() if run.arm is self.plan.arms[index]}
            left = {run.key for run in results.to_do(self.retry_failed)} - self._ended
            first, pruned = next(iter(runs)), self._pruned(search, next(iter(runs.values())), results)
            if self.tuning.prune and (pruned or first in left):
                left &= set() if pruned else {first}  # the other seeds are for those that are not pruned
            if waiting := {key: run for key, run in runs.items() if key in left}:
                self._left[index] = waiting
                return
            search.note(runs.values(), results, pruned)
            write_trials(self.folder, self._searches, self.tuning)
            if search.trials < self.tuning.trials:
                arm = with_settings(search.arm, {**search.ask(), "test_data": None})
                self.plan = self.plan.with_arm(index, arm)


def trial_plan(plan: Plan, settings: Sequence[Mapping[str, Any]], seeds: Sequence[int] = ()) -> Plan:
    """The arms at the settings that are tried, without test data."""
    pairs = zip(plan.arms, settings, strict=True)
    tried = [with_settings(arm, {**trial, "test_data": None}) for arm, trial in pairs]
    return replace(plan, arms=tried, seeds=seeds, splits=0, split_by=None)  # on the data set's own split


def write_trials(folder: Path, searches: Sequence["_Search"], tuning: Tuning) -> None:
    """Write `tuning.json`: the space, the trials and the best one of each arm."""
    arms = [
        {
            "arm": str(search.arm),
            "space": {key: _values_for_json(values) for key, values in search.space.items()},
            "best": search.best(),
            **({"epochs": search.epochs} if tuning.prune else {}),
            "trials": search.tried(),
        }
        for search in searches
    ]
    with explain_write_errors(folder, OTHER_OUT):
        write_json(folder / TRIALS_FILE, {"metric": f"validation {METRIC}", **asdict(tuning), "arms": arms})


def search_of(plan: Plan, space: Space, tuning: Tuning) -> dict[str, Any]:
    """What a search looks for and how, in JSON; that of more trials is the same search."""
    spaces = {str(arm): space.for_arm(arm) for arm in tuning.searched(plan).arms}
    found = {arm: {key: _values_for_json(values) for key, values in own.items()} for arm, own in spaces.items()}
    facts = {key: value for key, value in asdict(tuning).items() if key != "trials"}
    search: dict[str, Any] = json.loads(json.dumps({**facts, "arms": found}))
    return search


def search_in(folder: Path) -> dict[str, Any] | None:
    """The search whose `tuning.json` is in a folder, as `search_of`; None where there is none."""
    try:
        given = read_json(folder / TRIALS_FILE)
        facts = {key: given.get(key) for key in ("seeds", "on")} | {"prune": given.get("prune", False)}
        return {**facts, "arms": {arm["arm"]: arm["space"] for arm in given["arms"]}}
    except (AttributeError, KeyError, TypeError):  # not there, or damaged
        return None


def tuned_by(folder: Path, plan: Plan) -> str:
    """How the plan's settings were searched, by the file of a search's folder; empty: they are not from there."""
    try:
        search = read_json(folder / TRIALS_FILE) or {}
        tuning = Tuning(search["trials"], tuple(search["seeds"]), search["on"], search.get("prune", False))
        best = {arm["arm"]: arm["best"] for arm in search["arms"]}
        found = {arm: best[str(arm)] for arm in tuning.searched(plan).arms}
        is_best = tuning.spread(plan, found).arms == plan.arms
        return f"{tuning}{_costs(search['arms']) if tuning.prune else ''}" if is_best else ""
    except (AttributeError, KeyError, TypeError, UserError):  # not there, damaged, or of other arms
        return ""


def _costs(arms: Iterable[Mapping[str, Any]]) -> str:
    """The epochs that each arm's trials took: as few as were needed, but all arms have the same rule and trials."""
    texts = []
    for arm in arms:
        pruned = sum("pruned" in trial for trial in arm["trials"])
        texts.append(f"{arm['arm']} {arm['epochs']} ({pruned} of {len(arm['trials'])} trials pruned)")
    return f"; epochs used: {', '.join(texts)}"


class _Search:
    """The search of one arm: TPE, but where there are no more settings than trials, each of them once first.

    Attributes:
        asked: the trial that was asked for and has not ended.
        curves: of the first seed of each trial that was not pruned and did not fail.
        epochs: that the runs of all trials took, without those of failed ones.
    """

    def __init__(self, arm: Arm, space: Mapping[str, Values], trials: int, seed: int):
        optuna = optuna_module()
        self.curves, self.epochs = list[Curve](), 0
        self.arm, self.space = arm, space
        self.asked: Trial | None = None
        self.study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        listed = {key: values for key, values in space.items() if not isinstance(values, Range)}
        if len(listed) == len(space) and math.prod(map(len, listed.values())) <= trials:
            for chosen in itertools.product(*listed.values()):
                self.study.enqueue_trial(dict(zip(listed, map(json.dumps, chosen), strict=True)))

    @property
    def trials(self) -> int:
        """How many were asked for."""
        return sum(trial.state.name != "WAITING" for trial in self.study.trials)

    def ask(self) -> dict[str, Any]:
        """The settings of the next trial."""
        self.asked = self.study.ask()
        for key, values in self.space.items():
            _suggest(self.asked, key, values)
        return _settings(self.asked.params, self.space)

    def note(self, runs: Iterable[PlannedRun], results: Results, pruned: Curve | None = None) -> None:
        """Tell the study how the trial that was asked for did: `results` know its runs.

        Args:
            pruned: the curve of its first seed, where that was pruned.
        """
        trial, keys = self.asked, {run.key for run in runs}
        assert trial is not None, "a trial is asked for before it ends"
        finished = [result for result in results.finished() if f"{result.arm}" == f"{self.arm}"]
        reason = next((failure.reason for failure in results.failures() if failure.key in keys), None)
        trial.set_user_attr("test_metrics", {k: value for run in finished for k, value in run.metrics["test"].items()})
        trial.set_user_attr("runs", [result.key for result in finished])
        self.asked, value = None, math.nan
        curves = [pruned] if pruned else [curve_of(result.record) for result in finished]
        self.epochs += sum(map(len, curves))
        if pruned:
            trial.set_user_attr("pruned", {"epoch": len(pruned), "valid_auc": pruned[-1]})
            for epoch, auc in enumerate(pruned, 1):  # TPE takes the trial for one that ended so
                trial.report(auc, epoch)
            self.study.tell(trial, state=optuna_module().trial.TrialState.PRUNED)
            return
        if reason is None and not finished:
            reason = "its data changed while it ran"
        if reason is None:
            value = statistics.fmean(result.metrics["valid"].get(METRIC, math.nan) for result in finished)
        if math.isfinite(value):
            self.study.tell(trial, value)
            self.curves.append(curves[0])
            return
        trial.set_user_attr("failed", reason or f"no validation {METRIC}")
        self.study.tell(trial, state=optuna_module().trial.TrialState.FAIL)

    def best(self) -> dict[str, Any] | None:
        """The settings of the best trial; None where all failed."""
        finished = [trial for trial in self.tried() if trial["valid_auc"] is not None]
        return max(finished, key=lambda trial: trial["valid_auc"])["settings"] if finished else None

    def tried(self) -> list[dict[str, Any]]:
        """Settings, validation AUC and further notes of each trial."""
        return [
            {
                "settings": _settings(trial.params, self.space),
                "valid_auc": trial.value if trial.state.name == "COMPLETE" else None,
                **trial.user_attrs,
            }
            for trial in self.study.trials
            if trial.state.name != "WAITING"
        ]


def _warn_of_test_files(plan: Plan) -> None:
    """Where validation is the test file, as on four boards of BARS, the settings are chosen on the test set."""
    for dataset, params in {run.arm.dataset: run.experiment.params for run in plan.runs()}.items():
        if params.get("test_data") and params["test_data"] == params.get("valid_data"):
            logging.warning("%s: valid_data is the test file, so that --tune chooses on the test set", dataset)


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
