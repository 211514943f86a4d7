"""Our runs beside published figures: verdicts, flags, seeds, and boards whose data is not here."""

import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from fuxictr_llm.__main__ import main
from fuxictr_llm.commands.places import Place
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of_file
from fuxictr_llm.leaderboard.boards.published import PublishedRow, read_board
from fuxictr_llm.leaderboard.boards.verify import (
    Verified,
    arm_of_row,
    comparison_on_screen,
    comparison_page,
    flags_of,
    seeds_for,
    verify,
)
from fuxictr_llm.leaderboard.run.jobs import DONE, Outcome
from fuxictr_llm.leaderboard.run.results import Results
from runs_here import run_here
from support import edit
from support_leaderboard import quick

ROW = PublishedRow("shop", "FM", None, 0.7, None, 5, 0.702, 0.001, None, None, None, None, None)


def not_called(plan):
    raise AssertionError("nothing is to be run")


@pytest.fixture
def board(configs) -> str:
    """A config directory with the board `shop`: three rows that can run, and two that cannot."""
    (configs / "leaderboard").mkdir()
    (configs / "leaderboard" / "toy.csv").write_text(
        "board,model,auc,runs,auc_mean,auc_sd,fuxictr,note\nshop,FM,0.3,5,0.31,0.001,1.1.0,\n"
        "shop,YoutubeDNN,0.99,1,0.99,,2.2.0,a|note\nshop,FM_LLaCTR,0.6,1,0.6,,,\nshop,DCN-V2,0.7,1,0.7,,1.1.0,\n"
        "shop,AOANet,0.7,0,,,1.1.0,\n"
    )
    with (configs / "model_config.yaml").open("a") as file:
        file.write(
            "FM_shop: {epochs: 1}\nDNN_shop: {epochs: 1, seed: 2021, hidden_units: [4]}\n"
            "FM_LLaCTR_shop: {epochs: 1, lambda_fre: 0.0, lambda_fie: 0.0, ssft_epochs: 0, field_vectors: identity}\n"
            "AOANet_shop: {epochs: 1, model: AOANet, dataset_id: shop}\n"
        )
    return str(configs)


def test_rows_run_at_their_own_seeds_and_are_compared(board):
    rows = verify("shop", run_here("verified"), models=["FM", "DNN", "DCN-V2", "AOANet"], seeds=2, config=board)
    fm, dnn, dcnv2, aoanet = rows
    assert list(fm.auc) == [7, 2021] and list(dnn.auc) == [2021, 190034]
    assert fm.mean == pytest.approx(sum(fm.auc.values()) / 2) and fm.difference == pytest.approx(fm.mean - 0.31)
    assert (fm.verdict, dnn.verdict, dcnv2.verdict, aoanet.verdict) == ("better", "worse", "not run", "not run")
    assert fm.sd > 0
    assert set(fm.logloss) == {7, 2021}
    assert fm.data == "no md5 is published"
    assert fm.flags == () and dnn.flags == ("published: one run", "a|note")
    assert "not in model_config" in dcnv2.reason and "unknown backbone 'AOANet'" in aoanet.reason
    text = comparison_page("shop", rows, ["seeds 2"])
    assert "| YoutubeDNN | 0.99 | 0.990000 | 1 | " in text
    assert "a\\|note" in text
    assert "- seeds 2" in text
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(comparison_on_screen("shop", rows))
    screen = console.export_text()
    assert "0.31000 ± 0.00100" in screen and "published: one run: YoutubeDNN, DCN-V2" in screen
    assert max(map(len, screen.splitlines())) <= 80


class Here:
    """An executor that does jobs in no time."""

    one_cache = True

    def __init__(self):
        self.jobs, self.ended = [], []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def __len__(self):
        return len(self.ended)

    def slots(self):
        return 2

    def submit(self, task, work):
        quick(task.job)
        self.jobs.append(task.job)
        self.ended.append((task, Outcome(DONE)))

    def wait(self):
        ended, self.ended = self.ended, []
        return ended


@pytest.mark.parametrize(
    ("options", "place", "said"),
    [
        ([], Place(1), "the CPU of this machine, 1 at the same time"),
        (["--jobs", "3"], Place(3), "the CPU of this machine, 3 at the same time"),
        (["--gpu", "0", "1"], Place(2, ("0", "1")), "GPU 0, 1 of this machine, 2 at the same time"),
        (["--ray", "10.0.0.1:6379"], Place(None, (), "10.0.0.1:6379"), "Ray at 10.0.0.1:6379, a CPU for each thread"),
    ],
)
def test_the_command_runs_its_rows_where_it_is_told(options, place, said, board, monkeypatch, capsys):
    asked, here = [], Here()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr(Place, "executor", lambda place: asked.append(place) or here)
    args = ["verify", "--board", "shop", "--config", board, "--models", "FM", "DNN", "--seeds", "2", *options]
    assert main([*args, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith(f"where: {said}") for line in lines)
    assert sum(int(line.split()[0]) for line in lines if " runs to do, " in line) == 4
    assert not asked and not Path("leaderboards").exists()
    assert main(args) == 0 and asked == [place]
    runs = [job.experiment.params for job in here.jobs if not job.data_only]
    assert sorted((params["model"], params["seed"]) for params in runs) == [
        *(("DNN", 2021), ("DNN", 190034), ("FM", 7), ("FM", 2021))
    ]
    assert {params["gpu"] for params in runs} == {place.gpu}
    assert "| FM |" in Path("leaderboards/shop/verify.md").read_text()
    here.jobs.clear()
    assert main(args) == 0 and not [job for job in here.jobs if not job.data_only]  # nothing is done twice


def test_a_method_row_is_the_backbone_with_it(board):
    (row,) = verify("shop", run_here("verified"), models=["FM_LLaCTR"], config=board)
    assert row.verdict in ("better", "worse")
    assert list(row.auc) == [7]
    assert "ours: one run" in row.flags
    arm = arm_of_row(row.row)
    assert (arm.backbone, arm.method, arm.dataset) == ("FM", "LLaCTR", "shop")


def test_failed_runs_and_changed_settings_are_said(board):
    """The second seed cannot run."""
    done = run_here("verified")

    def half(plan):
        results = done(replace(plan, seeds=plan.seeds[:1]))
        with_failure = type(results)("verified", plan)
        with_failure.note_failure(plan.runs()[-1], "killed by SIGKILL")
        with_failure.read()
        return with_failure

    (row,) = verify("shop", half, models=["FM"], seeds=[3, 4], config=board, overrides={"batch_size": 64})
    assert list(row.auc) == [3]
    assert set(row.flags) == {"ours: one run", "settings changed with --set", "seed 4 failed: killed by SIGKILL"}


@pytest.mark.parametrize(
    ("auc", "verdict"),
    [((0.70299,), "reproduced"), ((0.7005, 0.7016), "reproduced"), ((0.7031,), "better"), ((0.7009,), "worse")],
)
def test_verdicts_are_about_the_mean_of_the_published_runs(auc, verdict):
    row = Verified(ROW, auc=dict(enumerate(auc)))
    assert row.verdict == verdict
    single = Verified(replace(ROW, runs=1), auc={1: 0.7})
    assert single.verdict == "reproduced" and single.sd is None


@pytest.mark.parametrize(
    ("model", "version", "flagged"),
    [
        ("DIEN", "2.0.2", True),
        ("FinalNet", "2.2.0", True),
        ("FinalNet", "2.3.3", True),
        ("DIEN", "2.0.1", False),
        ("DIEN", "2.3.4", False),
        ("FinalMLP", "2.2.0", False),
        ("FinalNet", None, False),
        ("FinalNet", "main", False),
    ],
)
def test_a_dead_add_loss_is_flagged_where_the_model_has_one(model, version, flagged):
    flags = flags_of(replace(ROW, fuxictr=version), {"model": model})
    assert any("never called its add_loss" in flag for flag in flags) == flagged


def test_the_sources_of_doubt_are_flagged():
    same = {"model": "FM", "valid_data": "test.csv", "test_data": "test.csv"}
    assert flags_of(replace(ROW, runs=0), same, runs=1) == (
        "published without a log",
        "ours: one run",
        "validation is the test file",
    )


def test_seeds_begin_with_the_rows_own():
    assert seeds_for(2019, 1) == [2019]
    assert seeds_for(2019, 3) == [2019, 2021, 190034]
    assert seeds_for(2021, 7) == [2021, 190034, 992817, 27011, 948432, 2022, 2023]


@pytest.mark.parametrize("board", ["frappe_x1", "taobaoad_x1", "microvideo1.7m_x1"])
def test_a_board_without_data_says_what_to_download(board):
    with pytest.raises(UserError, match=r"download from  https://\S+\n    train.csv *  md5 [0-9a-f]{32}"):
        verify(board, not_called, models=["FM"] if board != "frappe_x1" else ["DeepFM"])


def test_llactrs_board_asks_for_the_original_files():
    with pytest.raises(UserError, match="amazon-reviews-2023(.|\n)*Gift_Cards.jsonl"):
        verify("llactr_gift", not_called, models=["DeepFM_LLaCTR"])


@pytest.mark.parametrize(
    ("digests", "expected"),
    [
        ("{train.csv: abc, test.csv: null}", "others than published: train.csv, valid.csv"),
        ("{train.csv: %s, valid.csv: null, test.csv: null}", "as published (md5), but no md5 is known of valid.csv, test.csv"),
        ("{train.csv: null, valid.csv: null, test.csv: null}", "no md5 is published"),
    ],
)  # fmt: skip
def test_the_published_files_are_known_by_their_md5(configs, board, digests, expected):
    digests = digests.replace("%s", digest_of_file("raw/train.csv", "md5"))
    edit(configs / "dataset_config.yaml", "    data_format: csv\n", f"    data_format: csv\n    md5: {digests}\n")
    (row,) = verify("shop", lambda plan: Results("verified", plan), models=["FM"], config=board)
    assert row.data == expected
    assert row.verdict == "not run"
    assert row.reason == "not finished"


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(UserError, match="unknown model 'DeepFN' in board 'frappe_x1'; did you mean 'DeepFM'"):
        verify("frappe_x1", not_called, models=["DeepFN"])


def test_every_row_of_ours_of_a_packaged_board_is_one_of_it():
    """No tuned row is forgotten because of a name."""
    from fuxictr_llm.config.sources import model_entry_names

    rows = {row.our_expid for row in read_board("frappe_x1")}
    assert {name for name in model_entry_names() if name.endswith("_frappe_x1")} <= rows
