"""The folder of a leaderboard: another plan on the same data sets loses nothing of the first one's."""

from dataclasses import replace
from pathlib import Path

import pytest

from fuxictr_llm.__main__ import main
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.leaderboard.plan.plan import Plan
from fuxictr_llm.leaderboard.run.folders import check_folder, folder_of, goes_on_in
from fuxictr_llm.leaderboard.run.results import Results
from fuxictr_llm.leaderboard.run.space import Space, Tuning
from fuxictr_llm.leaderboard.run.tuning import search_of
from support import edit
from support_leaderboard import write_record

FIRST = Path("leaderboards/shop")


def finish(made: Plan, folder: Path = FIRST) -> None:
    """All runs of a plan, done in no time."""
    results = Results(folder, made)
    results.folder.mkdir(parents=True, exist_ok=True)
    results.write_plan()
    for run in made.runs():
        params = {**run.experiment.params, "model_root": str(folder / "runs")}
        write_record(replace(run.experiment, expid=run.name, params=params))


def board(configs, *more: str) -> list[str]:
    args = ["leaderboard", "--datasets", "shop", "--config", str(configs), "--set", "epochs=1", "--jobs", "1"]
    return [*args, "--backbones", *(more or ("FM",))]


def test_a_larger_plan_goes_on_and_any_other_has_a_folder_of_its_own(plan):
    assert folder_of(plan(["FM"]), ["shop"]) == FIRST
    finish(plan(["FM"]))
    assert folder_of(plan(["FM"]), ["shop"]) == FIRST
    assert folder_of(plan(["FM", "LR"], seeds=(1, 2, 3)), ["shop"]) == FIRST
    others = [plan(["LR"]), plan(["FM"], seeds=(1,)), plan(["FM"], seeds=(2, 3)), plan(["FM"], learning_rate=0.1)]
    folders = [folder_of(other, ["shop"]) for other in others]
    assert len({*folders}) == 4 and all(each.name.startswith("shop-") for each in folders)
    assert folder_of(plan(["LR"]), ["shop"]) == folders[0]  # the same at every time


def test_a_changed_config_is_the_same_plan_and_one_that_is_gone_is_another(plan, configs):
    made = plan(["FM"])
    finish(made)
    edit(configs / "model_config.yaml", "embedding_dim: 4", "embedding_dim: 5")
    assert goes_on_in(FIRST, plan(["FM"]))
    edit(FIRST / "plan.yaml", str(configs), "gone")
    assert not goes_on_in(FIRST, made)


def test_a_folder_that_is_named_is_never_written_over(configs, plan, capsys):
    finish(plan(["FM"], seeds=(1,)), Path("board"))
    before = Path("board/plan.yaml").read_text()
    assert main([*board(configs, "LR"), "--seed", "1", "--out", "board"]) == 2
    error = capsys.readouterr().err
    assert "'board' holds another leaderboard, whose table would be lost; give another folder with --out" in error
    assert Path("board/plan.yaml").read_text() == before and {*Path("board").iterdir()} == {
        Path("board/plan.yaml"),
        Path("board/runs"),
    }


def test_a_finished_plan_says_so_and_another_one_takes_its_runs(configs, plan, capsys):
    """No run is ever started: that of a data set that is not there would fail."""
    finish(plan(["FM", "LR"], seeds=(1, 2)))
    args = [*board(configs, "FM", "LR"), "--seeds", "1", "2"]
    assert main(args) == 0  # makes the tables
    assert "table.html" in capsys.readouterr().out
    made = {path: path.stat().st_mtime_ns for path in FIRST.iterdir()}
    assert main(args) == 0
    assert "All of this plan was run before, nothing is to do: leaderboards/shop/table.html" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in FIRST.iterdir()} == made
    assert main([*board(configs, "LR"), "--seeds", "1", "2"]) == 0
    (second,) = [path for path in Path("leaderboards").iterdir() if path != FIRST]
    assert "| LR | plain |" in (second / "table.md").read_text()
    assert "FM" not in (second / "table.csv").read_text()
    assert {path: path.stat().st_mtime_ns for path in FIRST.iterdir()} == made
    assert main([*args, "--paper-columns", "logloss", "gain"]) == 0  # only the first is there without a method
    paper = (FIRST / "paper.tex").read_text()
    assert paper.count("logloss") == 2 and "AUC" not in paper and "gain" not in paper


def test_a_search_has_its_own_folder_and_goes_on_with_more_trials(plan):
    made, space = plan(["FM"]), Space({"learning_rate": (0.1, 0.2)})
    search = search_of(made, space, Tuning(3))
    assert search == search_of(made, space, Tuning(9)) != search_of(made, Space({"learning_rate": (0.1,)}), Tuning(3))
    finish(made)
    assert not goes_on_in(FIRST, made, search)
    tuned = replace(made, arms=[replace(arm, settings={"learning_rate": 0.1}) for arm in made.arms])
    place = Path("tuned/tuning")
    place.mkdir(parents=True)
    (place / "tuning.json").write_text(
        '{"trials": 3, "seeds": [], "on": null, "prune": false, "arms": '
        '[{"arm": "FM plain on shop", "space": {"learning_rate": [0.1, 0.2]}}]}'
    )
    assert goes_on_in(Path("tuned"), made, search) and not goes_on_in(Path("tuned"), made)
    finish(tuned, Path("tuned"))
    assert goes_on_in(Path("tuned"), made, search) and not goes_on_in(Path("tuned"), made)
    assert goes_on_in(Path("tuned"), tuned)  # as `--from` has it
    with pytest.raises(UserError, match="holds another leaderboard"):
        check_folder(Path("tuned"), made, search_of(made, space, Tuning(3, (1, 2))))
