"""`--prune`: who is pruned and when, what is left of it, and that a search goes on as if it had not been ended."""

import multiprocessing
import random
import statistics
from contextlib import nullcontext
from pathlib import Path

import pytest

from fuxictr_llm.__main__ import main
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import read_json, write_json
from fuxictr_llm.experiment.run import run_experiment
from fuxictr_llm.leaderboard.run.engine import run_plan
from fuxictr_llm.leaderboard.run.jobs import FAILED, PRUNED, Job, outcome_of, run_job, work
from fuxictr_llm.leaderboard.run.pruning import Pruned, Watcher, check_curves, ends_so, is_hopeless
from fuxictr_llm.leaderboard.run.results import Results
from fuxictr_llm.leaderboard.run.space import Range, Space, Tuning
from fuxictr_llm.leaderboard.run.tuning import tune_arms, tuned_by
from fuxictr_llm.training.listener import Evaluation, Listener
from runs_here import pretended
from support_leaderboard import Heard, hopeless

pytest.importorskip("optuna")
SPACE = Space({"learning_rate": Range(1e-3, 1e-1, log=True)})
GOOD = ((0.6, 0.7, 0.8, 0.8),) * 5


def slow_is_hopeless(curve, others):
    """The rule in other words."""
    reached = [other[len(curve) - 1] for other in others if len(other) >= len(curve)]
    if len(others) < 5 or len(curve) < 2 or len(reached) < 3:
        return False
    return max(curve) < statistics.median(reached)


def test_below_the_median_of_the_trials_before_is_hopeless():
    draw = random.Random(5)
    seen = set()
    for _ in range(300):
        others = [[draw.random() for _ in range(draw.randint(1, 5))] for _ in range(draw.randint(0, 8))]
        curve = [draw.random() * 0.8 for _ in range(draw.randint(1, 5))]
        expected = slow_is_hopeless(curve, others)
        assert is_hopeless(curve, others) == expected
        ends = [end for end in range(1, len(curve) + 1) if slow_is_hopeless(curve[:end], others)]
        assert ends_so(curve, others) == (ends[:1] == [len(curve)])
        seen.add(expected)
    assert seen == {True, False}


def curve_of_run(run):
    """Best at a learning rate of .02; LLaCTR a little better; seeds differ a little."""
    params = run.experiment.params
    best = 0.8 - abs(params["learning_rate"] - 0.02) + 0.01 * (params["method"] is not None) + run.seed / 1000
    return tuple(best - 0.1 / epoch for epoch in range(1, 7))


def test_every_arm_has_the_same_trials_and_what_is_pruned_is_none_of_the_best(plan):
    asked, seen = plan(["FM"], ["plain", "LLaCTR"]), []
    tuning = Tuning(12, prune=True)
    tuned = tune_arms(asked, SPACE, tuning, "tuning", pretended(curve_of_run, seen))
    found = read_json("tuning/tuning.json")
    assert found["prune"] and len(seen) == 24
    for arm in found["arms"]:
        pruned = [trial for trial in arm["trials"] if "pruned" in trial]
        assert len(arm["trials"]) == 12 and 0 < len(pruned) < 8
        assert all(trial["valid_auc"] is None and 2 <= trial["pruned"]["epoch"] < 6 for trial in pruned)
        assert all("pruned" not in trial for trial in arm["trials"][:5])
        assert arm["best"] == max(arm["trials"], key=lambda trial: trial["valid_auc"] or 0)["settings"]
        assert arm["epochs"] == 6 * (12 - len(pruned)) + sum(trial["pruned"]["epoch"] for trial in pruned) < 72
    text = tuned_by(Path("tuning"), tuned)
    assert text.startswith(
        "12 trials on validation AUC, for each arm, the hopeless pruned; epochs used: FM plain on shop "
    )
    assert f"FM LLaCTR on shop {found['arms'][1]['epochs']} (" in text and "of 12 trials pruned)" in text


def test_the_first_seed_decides_and_the_others_follow_where_it_is_not_pruned(plan):
    asked, seen = plan(["FM"]), []
    tune_arms(asked, SPACE, Tuning(9, (1, 2, 3), prune=True), "tuning", pretended(curve_of_run, seen))
    (arm,) = read_json("tuning/tuning.json")["arms"]
    pruned = sum("pruned" in trial for trial in arm["trials"])
    assert 0 < pruned < 5 and len(seen) == 3 * (9 - pruned) + pruned
    assert all(len(trial["runs"]) == (0 if "pruned" in trial else 3) for trial in arm["trials"])


@pytest.mark.parametrize("seeds", [(), (1, 2)])
def test_a_pruned_search_that_is_killed_anywhere_goes_on_as_if_it_had_not_been(plan, seeds):
    asked, tuning = plan(["FM", "DeepFM"]), Tuning(9, seeds, prune=True)
    tune_arms(asked, SPACE, tuning, "whole", pretended(curve_of_run, whole := []))
    draw = random.Random(2)
    tune_arms(asked, SPACE, tuning, "at random", pretended(curve_of_run, seen := [], draw.randrange))
    assert read_json("at random/tuning.json") == read_json("whole/tuning.json")
    assert {run.key for run in seen} == {run.key for run in whole}
    known, ends = {}, [3, 11, 1000]

    def measure(run):
        if run.key not in known and len(known) >= ends[0]:
            raise KeyboardInterrupt
        return known.setdefault(run.key, curve_of_run(run))

    while ends:
        with nullcontext() if len(ends) == 1 else pytest.raises(KeyboardInterrupt):
            tune_arms(asked, SPACE, tuning, "killed", pretended(measure, []))
        ends.pop(0)
    assert read_json("killed/tuning.json") == read_json("whole/tuning.json") and len(known) == len(whole)


def evaluations(number):
    return [Evaluation(1 + index, 0.5, {"AUC": 0.6}, 1e-3) for index in range(number)]


def test_a_run_that_goes_on_counts_the_epochs_before():
    watcher = Watcher(GOOD)
    watcher.begins(evaluations(1))
    with pytest.raises(Pruned, match="pruned in epoch 2: validation AUC 0.600000 is below the median") as pruned:
        watcher.evaluated(evaluations(2)[-1])
    assert outcome_of(pruned.value).kind == PRUNED and pruned.value.curve == (0.6, 0.6)
    assert outcome_of(ValueError("pruned")).kind == FAILED


class Killer(Listener):
    """Ends the process after so many evaluations, unless it goes on from them."""

    def __init__(self, most):
        self.most, self.before = most, None

    def begins(self, before):
        self.before = list(before)

    def evaluated(self, evaluation):
        if evaluation.number == self.most:
            raise KeyboardInterrupt


def test_a_run_that_was_killed_hears_of_the_evaluations_before_and_its_record_has_all(plan):
    (run,) = plan(["FM"], seeds=[1], epochs=3).runs()
    whole = run_experiment(run.experiment, fresh=True).record["evaluations"]
    with pytest.raises(KeyboardInterrupt):
        run_experiment(run.experiment, listener=Killer(2))
    parts = run_experiment(run.experiment, listener=(killer := Killer(0))).record["evaluations"]
    assert parts == whole and [each["number"] for each in whole] == [1, 2, 3]
    assert [each._asdict() for each in killer.before] == whole[:1]


def test_a_real_run_ends_in_its_second_epoch_and_leaves_its_log_alone(plan):
    (run,) = plan(["FM"], seeds=[1], epochs=4).runs()
    job = Job(run.experiment, Path("out/job.out"), False, False, ((1.0, 1.0),) * 5)
    with pytest.raises(Pruned) as pruned:
        work(job)
    assert len(pruned.value.curve) == 2 and 0.3 < pruned.value.curve[0] < 1
    (log,) = [path for path in Path("checkpoints/shop").rglob("*") if path.is_file()]
    assert log.suffix == ".log" and "ERROR" not in (text := log.read_text()) and "pruned in epoch 2" in text


def test_notes_of_pruned_runs_are_found_again_but_only_where_the_search_prunes(plan):
    """Through the engine: half of the trials are hopeless."""
    asked, tuning, heard = plan(["FM"], epochs=3), Tuning(8, prune=True), Heard()

    def search(folder, tuning, work=hopeless):
        def run(trials):
            results = Results(folder, trials.plan)
            run_plan(results, jobs=2, agenda=trials, work=work, listener=heard)

        tune_arms(asked, SPACE, tuning, folder, run)
        return read_json(f"{folder}/tuning.json")["arms"]

    first, notes = search("tuning", tuning), sorted(Path("tuning/runs/shop").glob("*/*.pruned.json"))
    assert 0 < len(notes) == sum("pruned" in trial for trial in first[0]["trials"]) < 5
    assert len(heard.lines) == 8 + len(notes) and any("pruned in epoch 2" in line for line in heard.lines)
    note = read_json(notes[0])
    assert note["epoch"] == len(note["curve"]) == 2 and note["valid_auc"] == note["curve"][-1]
    heard.lines.clear()
    assert search("tuning", tuning) == first and heard.lines == []
    write_json(notes[0], {**note, "curve": [0.99, 0.99]})  # this one would not be pruned
    assert search("tuning", tuning) == first and len(heard.lines) == 2
    heard.lines.clear()
    whole = search("tuning", Tuning(8))  # those that were pruned are run to the end
    assert len(heard.lines) == len({note["key"] for note in map(read_json, notes)}) > 0
    assert all(trial["valid_auc"] for trial in whole[0]["trials"])


def test_a_job_that_was_pruned_leaves_no_output(plan, tmp_path):
    (run,) = plan(["FM"], seeds=[1]).runs()
    job = Job(run.experiment, tmp_path / "job.out", False, False, GOOD)

    with multiprocessing.get_context("fork").Pool(1) as pool:
        outcome = pool.apply(run_job, (job, hopeless_always))
    assert outcome.kind == PRUNED and outcome.curve == (0.5, 0.5) and not job.output.exists()


def hopeless_always(job):
    raise Pruned((0.5, 0.5))


def test_bad_input_is_a_line(plan, configs, capsys):
    with pytest.raises(UserError, match="--prune compares validation AUC, but monitor of FM plain on shop is logloss"):
        check_curves(plan(["FM"], monitor="logloss"))
    args = ["leaderboard", "--config", str(configs), "--backbones", "FM", "--datasets", "shop", "--prune"]
    assert main(args) == 2
    assert "--tune N, with N of 1 or more, and --space FILE.yaml go together" in capsys.readouterr().err
