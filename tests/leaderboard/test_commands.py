"""`verify`, `bars` and `leaderboard --tune`, as users type them."""

from pathlib import Path

import pytest

from fuxictr_llm.__main__ import main
from fuxictr_llm.leaderboard.run.engine import locked_folder


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["verify", "--board", "frape_x1"], "unknown board 'frape_x1'; did you mean 'frappe_x1'?"),
        (["verify", "--board", "frappe_x1", "--models", "DeepFM"], "lacks train.csv, valid.csv, test.csv"),
        (["verify", "--board", "frappe_x1", "--seeds", "0"], "--jobs must be 1 or more"),
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
    with pytest.raises(SystemExit) as ended:
        main(["leaderboard", "--jobs", "4", "verify", "--board", "frappe_x1"])
    assert ended.value.code == 2 and "unrecognized arguments: verify" in capsys.readouterr().err


def test_a_dry_run_tells_the_trials(configs, capsys):
    Path("space.yaml").write_text("learning_rate: [0.1, 0.2]")
    args = ["--backbones", "FM", "LR", "--datasets", "shop", "--config", str(configs), "--seeds", "2", "--dry-run"]
    assert main(["leaderboard", *args, "--tune", "3", "--space", "space.yaml"]) == 0
    assert "first 3 trials on validation AUC for each arm, over space.yaml: 6 runs" in capsys.readouterr().out


def test_a_folder_that_another_leaderboard_holds_is_not_tuned_in(configs, capsys):
    Path("space.yaml").write_text("learning_rate: [0.1, 0.2]")
    args = ["--backbones", "FM", "--datasets", "shop", "--config", str(configs), "--out", "board"]
    with locked_folder(Path("board")):
        assert main(["leaderboard", *args, "--tune", "1", "--space", "space.yaml"]) == 2
    assert "'board' is in use by process" in capsys.readouterr().err and not Path("board/tuning").exists()
