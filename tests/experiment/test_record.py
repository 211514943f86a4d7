"""What a run record says of how it was made."""

import os
import subprocess
import sys

import pytest

from fuxictr_llm.experiment.record import append_result_line, typed_command


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (["run_expid.py", "--expid", "FM_shop"], "python run_expid.py --expid FM_shop"),
        (
            ["/env/fuxictr_llm/__main__.py", "run", "--set", "metrics=[AUC, gAUC]"],
            "python -m fuxictr_llm run --set 'metrics=[AUC, gAUC]'",
        ),
        (["/env/bin/fuxictr-llm", "run", "--expid", "FM_shop"], "fuxictr-llm run --expid FM_shop"),
    ],
)
def test_a_command_can_be_typed_again(monkeypatch, typed, expected):
    monkeypatch.setattr(sys, "argv", typed)
    assert typed_command() == expected


def test_a_line_break_in_a_command_is_no_line_break_in_the_result_file(monkeypatch):
    value = "prompt=it's\n\ta\\b é\u2028"
    monkeypatch.setattr(sys, "argv", ["/env/bin/fuxictr-llm", "run", "--set", value])
    command = typed_command()
    assert command.isprintable()
    words = ["bash", "-c", f'fuxictr-llm() {{ printf %s "$3"; }}; {command}']
    said = subprocess.run(words, capture_output=True, check=True, env={"LC_ALL": "C.UTF-8", "PATH": os.environ["PATH"]})
    assert said.stdout.decode() == value


RECORD = {
    "metrics": {"valid": {"AUC": 0.5}, "test": {}},
    "command": "python run_expid.py",
    "model_id": "FM_shop",
    "config": {"dataset_id": "shop"},
}


def test_a_result_line_that_was_cut_stands_alone(tmp_path):
    path = tmp_path / "results.csv"
    append_result_line(path, RECORD)
    whole = path.read_text()
    path.write_text(whole + whole[:30])
    append_result_line(path, RECORD)
    append_result_line(path, RECORD)
    lines = path.read_text().splitlines()
    assert len(lines) == 4 and lines[1] == whole[:30] and all("[exp_id] FM_shop" in lines[place] for place in (0, 2, 3))
