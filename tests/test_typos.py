"""A typo is one line, before torch is imported, which takes seconds; help describes the program."""

import re
import sys

import pytest
from test_command_line import python

from fuxictr_llm.__main__ import COMMANDS, main

TYPOS = {
    "rnu --expid DeepFM_movielens100k": "unknown command 'rnu'; did you mean 'run'?",
    "run --expdi DeepFM_movielens100k": "unrecognized arguments: --expdi DeepFM_movielens100k; did you mean '--expid'?",
    "run --gpu x --expid DeepFM_movielens100k": "argument --gpu: invalid int value: 'x'",
    "prepare movielens100": "unknown data set 'movielens100'",
    "encode --expid DeepFM_LLaCTR_movielens100": "unknown data set 'movielens100'",
    "doctor --model DeepFN": "unknown backbone 'DeepFN' in --model; did you mean",
    "doctor --expid DeepFM_LLaCTR_movielens100": "unknown data set 'movielens100'",
    "verify --board frape_x1": "unknown board 'frape_x1'; did you mean 'frappe_x1'",
    "export --run runs/DeepFM_x --to served": "unknown run 'runs/DeepFM_x'",
    "predict --model runs/DeepFM_x --data x.csv": "unknown run 'runs/DeepFM_x'",
    "bars --run runs/DeepFM_x --out x": "unknown run 'runs/DeepFM_x'",
    "ls absent": "'absent' is no folder",
    "clean --older-than soon": "--older-than 'soon'",
    "zoo --zoo absent": "--zoo '",  # the last one: the process keeps it
}


def test_a_typo_is_one_line_before_torch_is_imported():
    code = f"import sys; from fuxictr_llm.__main__ import main\nfor words in {[*TYPOS]!r}: print(main(words.split()), 'torch' in sys.modules)"
    ended = python("-c", code)
    assert ended.stdout.splitlines() == ["2 False"] * len(TYPOS), ended.stderr
    lines = ended.stderr.splitlines()
    assert [
        line for line, said in zip(lines, TYPOS.values(), strict=True) if not line.startswith(f"error: {said}")
    ] == []


def test_a_typo_in_an_option_names_the_help_of_its_command(capsys, monkeypatch):
    assert main(["clean", "--olderthan", "3d"]) == 2
    error = capsys.readouterr().err
    assert "did you mean '--older-than'?; 'python -m fuxictr_llm clean --help' lists" in error
    monkeypatch.setattr(sys, "argv", ["run_expid.py"])
    assert main(["run", "--expids", "x"]) == 2
    assert "'python run_expid.py --help' lists" in capsys.readouterr().err


def test_help_describes_the_program_and_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert "An experiment has a name" in shown and "Importing" not in shown
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2]
        assert re.search(rf"^    {name}\s", shown, re.MULTILINE)
        with pytest.raises(SystemExit):
            main([name, "--help"])
        of_command = capsys.readouterr().out
        assert not re.search(r"^  (--?[\w-]+)( [A-Z|.:]+)?$\n^  -", of_command, re.MULTILINE), (
            f"{name}: an option says nothing"
        )
