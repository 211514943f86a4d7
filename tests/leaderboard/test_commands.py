"""`verify`, `bars` and `leaderboard --tune`, as users type them."""

from pathlib import Path

import pytest

from fuxictr_llm.__main__ import main
from fuxictr_llm.leaderboard.run.lock import locked_folder

MOVIELENS = ["leaderboard", "--backbones", "FM", "--datasets", "movielens100k"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["verify", "--board", "frape_x1"], "unknown board 'frape_x1'; did you mean 'frappe_x1'?"),
        (["verify", "--board", "frappe_x1", "--models", "DeepFM"], "lacks train.csv, valid.csv, test.csv"),
        (["verify", "--board", "frappe_x1", "--seeds", "0"], "--seeds 0: give a number of seeds"),
        (["bars", "--run", "checkpoints/shop/FM_shop", "--out", "x"], "unknown run"),
        (["leaderboard", "verify", "--board", "frappe_x1"], "'leaderboard verify' is now a command of its own: python"),
        (
            ["leaderboard", "bars", "--help"],
            "'leaderboard bars' is now a command of its own: python -m fuxictr_llm bars",
        ),
        (["leaderboard", "--from", "plan.yaml", "--seed", "0"], "--seed is part of the plan that --from names"),
        (
            ["leaderboard", "--backbones", "FM", "--datasets", "frappe_x1", "--tune", "3"],
            "--tune N, with N of 1 or more, and --space",
        ),
        (
            ["leaderboard", "--backbones", "FM", "--datasets", "frappe_x1", "--tune", "3", "--space", "none.yaml"],
            "cannot read 'none.yaml'",
        ),
        ([*MOVIELENS, "--splits", "5", "--split-by", "time"], "'movielens100k' has no time stamps for rolling splits"),
        ([*MOVIELENS, "--splits", "1"], "--splits 1 is no number of splits that could be compared; give 2 or more"),
        ([*MOVIELENS, "--split-by", "random"], "--split-by random needs --splits K"),
        ([*MOVIELENS, "--methods", "plain", "ELEC", "--seeds", "2", "--power"], "--power needs a pilot: no method has"),
    ],
)
def test_what_is_wrong_is_told_before_anything_runs(args, message, capsys):
    assert main(args) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "usage" not in error
    assert not Path("leaderboards").exists()


def test_no_other_command_hides_behind_an_option(capsys):
    """As `leaderboard --jobs 4 verify` once did, which ran with another number of jobs."""
    assert main(["leaderboard", "--jobs", "4", "verify", "--board", "frappe_x1"]) == 2
    assert "unrecognized arguments: verify" in capsys.readouterr().err


def test_a_dry_run_tells_the_trials(configs, capsys):
    Path("space.yaml").write_text("learning_rate: [0.1, 0.2]")
    args = ["--backbones", "FM", "LR", "--datasets", "shop", "--config", str(configs), "--seeds", "2", "--dry-run"]
    assert main(["leaderboard", *args, "--tune", "3", "--space", "space.yaml"]) == 0
    assert "first 3 trials on validation AUC, for each arm, over space.yaml: 6 runs" in capsys.readouterr().out


def test_too_few_seeds_or_splits_for_a_verdict_are_told_before_anything_runs(configs, capsys):
    args = ["leaderboard", "--backbones", "FM", "--datasets", "shop", "--config", str(configs), "--dry-run"]
    for more, line in (
        (["--methods", "plain", "ELEC", "--seeds", "3"], "With 3 seeds nothing can be proven: a verdict needs 5\n"),
        (["--methods", "plain", "ELEC", "--splits", "2"], "With 2 splits nothing can be proven: a verdict needs 5\n"),
        (["--methods", "plain", "ELEC"], "With 1 seed nothing can be proven: a verdict needs 5\n"),
        (["--methods", "plain", "ELEC", "--seeds", "5"], ""),
        ([], ""),
    ):
        assert main([*args, *more]) == 0
        out = capsys.readouterr().out
        assert out.startswith(line) and ("nothing can be proven" in out) == bool(line)


def test_a_folder_that_another_leaderboard_holds_is_not_tuned_in(configs, capsys):
    Path("space.yaml").write_text("learning_rate: [0.1, 0.2]")
    args = ["--backbones", "FM", "--datasets", "shop", "--config", str(configs), "--out", "board"]
    with locked_folder(Path("board")):
        assert main(["leaderboard", *args, "--tune", "1", "--space", "space.yaml"]) == 2
    assert "'board' is in use by process" in capsys.readouterr().err and not Path("board/tuning").exists()
