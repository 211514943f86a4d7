"""What a run record says of how it was made."""

import json
import os
import subprocess
import sys

import pytest

from fuxictr_llm.experiment.record import append_result_line, typed_command, warn_of_other_code


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


@pytest.mark.parametrize(
    ("noted", "said"),
    [({"method": "a"}, False), ({"method": "b"}, True), ({"backbone": "b"}, False), (None, False), ("damaged", False)],
)
def test_a_run_that_replaces_one_of_other_code_of_its_method_says_so(noted, said, tmp_path, caplog):
    if noted != "damaged":
        (tmp_path / "FM_x_shop.run.json").write_text(json.dumps({"sources": {"code": noted}}))
    warn_of_other_code(tmp_path / "FM_x_shop", {"code": {"backbone": "a", "method": "a"}})
    assert ("with other code of its method: it is replaced" in caplog.text) == said


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
