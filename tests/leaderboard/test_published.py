"""The shipped boards, boards of one's own, and damaged ones."""

from pathlib import Path

import pytest

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.config.sources import dataset_names, model_entry_names
from fuxictr_llm.leaderboard.boards.published import BOARD_COLUMNS, read_board, read_boards


def test_the_boards_are_data_sets_of_ours_with_the_published_figures():
    boards = read_boards()
    assert set(boards) <= set(dataset_names()) and len(boards) == 14
    assert sum(map(len, boards.values())) == 359 + 12
    of_frappe = {row.model: row for row in boards["frappe_x1"]}
    deepfm, finalmlp, finalnet = (of_frappe[name] for name in ("DeepFM", "FinalMLP", "FinalNet"))
    # BARS prints the first of several runs; a repetition is to be expected at their mean.
    assert (deepfm.auc, deepfm.runs, deepfm.expected_auc, deepfm.fuxictr) == (0.9842, 5, 0.983947, "1.1.0")
    assert (finalmlp.auc, finalmlp.runs, finalmlp.expected_auc) == (0.9861, 1, 0.9861)
    assert (finalnet.auc, finalnet.runs, finalnet.auc_mean, finalnet.expected_auc) == (0.9857, 0, None, 0.9857)
    assert {of_frappe[name].our_expid for name in ("YoutubeDNN", "DCN-V2", "CrossNet-V2", "IPNN", "Wide&Deep")} == {
        "DNN_frappe_x1", "DCNv2_frappe_x1", "CrossNet-V2_frappe_x1", "PNN_frappe_x1", "WideDeep_frappe_x1"
    }  # fmt: skip


def test_llactrs_pairs_are_rows_of_ours_as_the_published_code_was_called():
    rows, known = read_board("llactr_gift"), set(model_entry_names())
    assert len(rows) == 12 and all("chosen on test" in row.note for row in rows)
    assert {row.our_expid for row in rows} <= known
    params = load_experiment("FmFM_LLaCTR_llactr_gift").params
    expected = {"variant": "reference", "weight_decay": 0.01, "ssft_epochs": 3, "lambda_fre": 0.01, "lambda_fie": 0.1}
    expected |= {"embedding_dim": 32, "timestamp": "raw", "language_model": "meta-llama/Meta-Llama-3-8B"}
    assert {key: params[key] for key in expected} == expected


def own_board(text: str) -> Path:
    Path("mine/leaderboard").mkdir(parents=True)
    Path("mine/leaderboard/own.csv").write_text(text)
    return Path("mine")


def test_a_board_of_ones_own_stands_before_the_packaged_one():
    folder = own_board("board,model,auc,runs,note\nshop,FM,0.7,1,\nfrappe_x1,FM,0.9,0,mine\n")
    (row,) = read_board("frappe_x1", folder)
    assert (row.auc, row.runs, row.note, row.gauc) == (0.9, 0, "mine", None)
    assert len(read_board("shop", folder)) == 1 and len(read_board("criteo_x1", folder)) == 35


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("board,model,auc\n", "own.csv' lacks the column 'runs'"),
        ("board,model,auc,runs,uac\n", "unknown column 'uac'.*did you mean 'auc'"),
        ("board,model,auc,runs\nshop,FM,high,1\n", "own.csv', line 2: auc is 'high', which is no number"),
        ("board,model,auc,runs\nshop,FM,nan,1\n", "line 2: auc is 'nan'"),
        ("board,model,auc,runs\nshop,FM,0.7,1.5\n", "line 2: runs is '1.5', which is no whole number"),
        ("board,model,auc,runs\nshop,FM,0.7,1\nshop,LR,,1\n", "line 3: 'auc' is empty"),
        ("board,model,auc,runs\nshop,FM,0.7,1,\n", "line 2 has more cells than the header"),
        ("board,model,auc,runs\nshop,FM,0.7,1\nshop,FM,0.7,1\n", "line 3: 'FM' is given twice"),
        (",".join(BOARD_COLUMNS) + '\n"shop', "cannot read the board"),
    ],
)
def test_a_damaged_board_is_a_line(text, message):
    with pytest.raises(UserError, match=message):
        read_boards(own_board(text))


def test_an_unknown_board_names_the_nearest():
    with pytest.raises(UserError, match="unknown board 'frape_x1'; did you mean 'frappe_x1'"):
        read_board("frape_x1")
