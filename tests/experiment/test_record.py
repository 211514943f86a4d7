"""What a run record says of how it was made."""

import sys

import pytest

from fuxictr_llm.experiment.record import command


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (["run_expid.py", "--expid", "FM_shop"], "python run_expid.py --expid FM_shop"),
        (
            ["/env/fuxictr_llm/__main__.py", "run", "--set", "metrics=[AUC, gAUC]"],
            "python -m fuxictr_llm run --set 'metrics=[AUC, gAUC]'",
        ),
    ],
)
def test_a_command_can_be_typed_again(monkeypatch, typed, told):
    monkeypatch.setattr(sys, "argv", typed)
    assert command() == told
