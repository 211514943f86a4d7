"""What a run record says of how it was made."""

import json
import sys

import pytest

from fuxictr_llm.experiment.record import typed_command, warn_of_other_code


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
