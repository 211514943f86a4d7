"""The search: equally many trials for every arm, on validation, the same however often it is ended."""

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from fuxictr_llm.commands.leaderboard import write_tables
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import read_json
from fuxictr_llm.leaderboard.run.results import Results
from fuxictr_llm.leaderboard.run.space import Range, Space, Tuning
from fuxictr_llm.leaderboard.run.tuning import trial_plan, tune_arms, tuned_by
from runs_here import pretended, run_here, trials_here

pytest.importorskip("optuna")
SPACE = Space({"learning_rate": Range(1e-3, 1e-1, log=True)}, {"LLaCTR": {"lambda_fre": (0.01, 0.1)}})

SPACE_OF_ALL = Space({"learning_rate": Range(1e-3, 1e-1, log=True)})


def closeness(run) -> float:
    """Best at a learning rate of .02, and without FRE."""
    params = run.experiment.params
    return 0.8 - abs(params["learning_rate"] - 0.02) - params.get("lambda_fre", 0) / 10


def trials_of(folder: str) -> list[list[dict]]:
    return [[trial["settings"] for trial in arm["trials"]] for arm in read_json(f"{folder}/tuning.json")["arms"]]


def test_no_setting_of_an_arm_brings_test_data_into_a_trial(plan, tmp_path):
    asked = plan(["FM"])
    asked = replace(asked, arms=[replace(asked.arms[0], settings={"test_data": f"{tmp_path}/raw/test.csv"})])
    (trial,) = trial_plan(asked, [{"learning_rate": 0.1}]).runs()
    assert trial.experiment.params["test_data"] is None and trial.experiment.params["learning_rate"] == 0.1


def test_every_arm_gets_the_same_trials_without_test_data_and_then_its_best(plan):
    asked, seen = plan(["FM"], ["plain", "LLaCTR"], controls=True, seeds=(5,)), []
    tuned = tune_arms(asked, SPACE, Tuning(3), "tuning", pretended(closeness, seen))
    assert set(Counter(str(run.arm) for run in seen).values()) == {3}
    assert len(asked.arms) == 4 and {run.seed for run in seen} == {7}  # that of the config, and none of the plan's
    assert all(run.experiment.params["test_data"] is None for run in seen)
    assert all(run.experiment.params["test_data"] for run in tuned.runs())
    assert [arm.label for arm in tuned.arms] == [arm.label for arm in asked.arms] and tuned.seeds == asked.seeds
    for arm, facts in zip(tuned.arms, read_json("tuning/tuning.json")["arms"], strict=True):
        best = max(facts["trials"], key=lambda trial: trial["valid_auc"])
        assert best["settings"] == facts["best"] and arm.settings.items() >= facts["best"].items()
        assert len(facts["trials"]) == 3 and all(trial["test_metrics"] == {} for trial in facts["trials"])
        assert ("lambda_fre" in facts["best"]) == (arm.method == "LLaCTR")


def test_a_trial_of_several_seeds_has_their_mean_and_fails_with_one_of_them(plan):
    asked, space = plan(["FM"]), Space({"learning_rate": (0.01, 0.02)})

    def lucky_once(run) -> float:
        return {1: 0.9, 2: 0.5, 3: 0.4}[run.seed] if run.experiment.params["learning_rate"] == 0.01 else 0.65

    tuned = tune_arms(asked, space, Tuning(4, seeds=(1, 2, 3)), "tuning", pretended(lucky_once, seen := []))
    assert {run.seed for run in seen} == {1, 2, 3}
    assert tuned.arms[0].settings["learning_rate"] == 0.02  # .65 each; the other has .6
    trials = read_json("tuning/tuning.json")["arms"][0]["trials"]
    assert all(len(trial["runs"]) == 3 for trial in trials)
    assert sorted({round(trial["valid_auc"], 6) for trial in trials}) == [0.6, 0.65]
    with pytest.raises(UserError, match="all 1 trials of FM plain on shop failed"):
        measure = pretended(lambda run: 0.7 if run.seed < 3 else "killed by SIGKILL", [])
        tune_arms(asked, space, Tuning(1, seeds=(1, 2, 3)), "other", measure)


def test_where_there_are_no_more_settings_than_trials_all_are_tried(plan):
    asked = plan(["FM"])
    space = Space({"learning_rate": (0.01, 0.02, 0.03), "embedding_dim": (4, 8)})
    tune_arms(asked, space, Tuning(7), "tuning", pretended(closeness, []))
    (tried,) = trials_of("tuning")
    assert len(tried) == 7 and len({json.dumps(settings) for settings in tried[:6]}) == 6
    tune_arms(asked, space, Tuning(5), "fewer", pretended(closeness, []))
    assert len(trials_of("fewer")[0]) == 5


def test_what_is_best_on_one_backbone_is_for_the_others_too(plan):
    asked, seen = plan(["FM", "DeepFM"], ["plain", "LLaCTR"], controls=True), []
    tuning = Tuning(3, on="DeepFM")
    tuned = tune_arms(asked, SPACE, tuning, "tuning", pretended(closeness, seen))
    assert {run.arm.backbone for run in seen} == {"DeepFM"}
    by_name = {str(arm): arm.settings for arm in tuned.arms}
    best = {arm["arm"]: arm["best"] for arm in read_json("tuning/tuning.json")["arms"]}
    assert len(by_name) == 8 and len(best) == 4
    for name, settings in best.items():
        assert by_name[name].items() >= settings.items()
        assert by_name[name.replace("DeepFM", "FM")].items() >= settings.items()
    assert len({json.dumps(settings) for settings in best.values()}) > 1
    assert tuned_by(Path("tuning"), tuned) == "3 trials on validation AUC, for each arm of DeepFM"
    assert tuned_by(Path("tuning"), asked) == ""


def test_tuning_on_a_backbone_needs_its_arms_and_keys_of_all(plan):
    asked = plan(["FM", "DeepFM"], ["plain", "LLaCTR"])
    with pytest.raises(UserError, match="unknown backbone 'FwFM'"):
        SPACE.check(asked, Tuning(1, on="FwFM"))
    with pytest.raises(UserError, match="FM LLaCTR on shop has no counterpart of DeepFM"):
        SPACE.check(replace(asked, arms=[*asked.arms[:2], asked.arms[2]]), Tuning(1, on="DeepFM"))
    with pytest.raises(UserError, match="hidden_units"):
        Space({"hidden_units": ((8,), (4,))}).check(asked, Tuning(1, on="DeepFM"))


def test_a_search_that_is_killed_goes_on_as_if_it_had_not_been(plan):
    """With runs that are kept, as the folder keeps them."""
    asked, known, most = plan(["FM"]), {}, 3
    space = Space({"learning_rate": (0.001, 0.01, 0.1), "batch_size": Range(32, 256)})
    tune_arms(
        asked, space, Tuning(12), "whole", pretended(closeness, [])
    )  # from the eleventh on, TPE follows what was measured

    def measure(run):
        if run.key not in known and len(known) == most:
            raise KeyboardInterrupt
        return known.setdefault(run.key, closeness(run))

    with pytest.raises(KeyboardInterrupt):
        tune_arms(asked, space, Tuning(12), "ended", pretended(measure, []))
    before, most = set(known), 12
    tune_arms(asked, space, Tuning(12), "ended", pretended(measure, []))
    assert trials_of("ended") == trials_of("whole") and before < known.keys()


def test_no_arm_waits_for_another_and_the_order_in_which_runs_end_changes_nothing(plan):
    asked, tuning, seen = plan(["FM", "DeepFM"]), Tuning(12, seeds=(1, 2)), []
    tune_arms(asked, SPACE_OF_ALL, tuning, "in turn", pretended(closeness, []))
    draw = random.Random(3)
    tune_arms(asked, SPACE_OF_ALL, tuning, "at random", pretended(closeness, [], draw.randrange))
    tune_arms(asked, SPACE_OF_ALL, tuning, "last first", pretended(closeness, seen, lambda waiting: waiting - 1))
    assert trials_of("in turn") == trials_of("at random") == trials_of("last first")
    assert {run.arm.backbone for run in seen[:24]} == {"DeepFM"}  # an arm's whole search, while the others wait


def test_a_plan_changes_one_arm_as_if_made_anew(plan):
    asked = plan(["FM", "DeepFM"], ["plain", "LLaCTR"], controls=True, lambda_fre=0.5)
    for index, arm in enumerate(asked.arms):
        changed = replace(arm, settings={**arm.settings, "learning_rate": 0.02})
        arms = [*asked.arms[:index], changed, *asked.arms[index + 1 :]]
        new, whole = asked.with_arm(index, changed), replace(asked, arms=arms)
        assert [run.key for run in new.runs()] == [run.key for run in whole.runs()] and new.sha256 == whole.sha256


def test_trials_of_other_data_do_not_count_and_failed_ones_can_be_tried_again(plan):
    asked, space = plan(["FM"]), Space({"learning_rate": (0.05,)})

    def valid_auc() -> float:
        tune_arms(asked, space, Tuning(1), "tuning", trials_here("tuning"))
        return read_json("tuning/tuning.json")["arms"][0]["trials"][0]["valid_auc"]

    before = valid_auc()
    valid = Path("raw/valid.csv")
    valid.write_text("\n".join(valid.read_text().splitlines()[:100]) + "\n")
    assert valid_auc() != before
    with pytest.raises(UserError, match="all 1 trials of FM plain on shop failed; the last: killed"):
        tune_arms(asked, space, Tuning(1), "other", pretended(lambda run: "killed", []))
    tune_arms(asked, space, Tuning(1), "other", pretended(closeness, []))


def test_failed_trials_count_and_an_arm_without_a_good_one_is_an_error(plan):
    asked = plan(["FM"])
    space = Space({"learning_rate": (0.001, 0.1)})

    def measure(run):
        return "killed by SIGKILL" if run.experiment.params["learning_rate"] == 0.1 else float("nan")

    with pytest.raises(UserError, match="all 4 trials of FM plain on shop failed"):
        tune_arms(asked, space, Tuning(4), "tuning", pretended(measure, []))
    trials = read_json("tuning/tuning.json")["arms"][0]["trials"]
    assert {trial["failed"] for trial in trials} == {"killed by SIGKILL", "no validation AUC"}


def test_another_space_or_another_config_is_another_search(plan, caplog):
    space, seen = Space({"learning_rate": (0.001, 0.1)}), []
    for asked, of in (
        (plan(["FM"]), space),
        (plan(["FM"]), Space({"learning_rate": (0.01,)})),
        (plan(["FM"], batch_size=64), space),
    ):
        tune_arms(asked, of, Tuning(1), "tuning", pretended(closeness, seen))
    assert len(seen) == 3 and "test file" not in caplog.text


def test_a_search_on_the_test_file_says_so(plan, tmp_path, caplog):
    asked = plan(["FM"], valid_data=f"{tmp_path}/raw/test.csv")
    tune_arms(asked, Space({"learning_rate": (0.1,)}), Tuning(1), "tuning", pretended(closeness, []))
    assert "shop: valid_data is the test file" in caplog.text


def test_a_real_trial_tests_nothing_and_the_data_is_not_built_again(plan, caplog):
    asked = plan(["FM"], seeds=(1,))
    (whole,) = run_here("board")(asked).finished()
    tuned = tune_arms(asked, Space({"learning_rate": (0.05,)}), Tuning(1), "board/tuning", trials_here("board/tuning"))
    (record,) = map(json.loads, (path.read_text() for path in Path("board/tuning/runs").glob("*/*/*.run.json")))
    assert record["metrics"]["test"] == {} and record["config"]["test_data"] is None
    assert set(record["data"]["sha256"]) == set(record["data"]["rows"]) == {"train", "valid"}
    assert set(whole.record["data"]["rows"]) == {"train", "valid", "test"} and "Rebuilding" not in caplog.text
    (result,) = run_here("board")(tuned).finished()
    assert result.record["config"]["learning_rate"] == 0.05 and result.metrics["test"]
    write_tables(run_here("board")(asked))
    assert (
        "tuning:" not in Path("board/table.md").read_text() and "settings of" not in Path("board/table.md").read_text()
    )
    Path("board/plan.yaml").write_text(tuned.to_yaml(), encoding="utf-8")
    write_tables(Results("board"))  # as a command that goes on from there, and was not asked to tune
    page = Path("board/table.md").read_text()
    assert "- tuning: 1 trials on validation AUC, for each arm" in page
    assert "- settings of FM plain on shop: learning\\_rate: 0.05" in page
