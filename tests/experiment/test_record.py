"""What a run record says of how it was made."""

import sys

import pytest

from fuxictr_llm.experiment.record import typed_command


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
