"""Any data set ends well: in finite metrics and a right vocabulary, or in one line that names what is wrong.

`FUZZ_EXAMPLES=2000 python -m pytest tests/test_fuzz.py` tries more than the ordinary run, and at random.
"""

import math
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, event, given, settings

from fuxictr_llm.__main__ import main
from fuxictr_llm.common.files import read_json
from fuzz_cases import MISSPELT, Case, cases
from support import as_arguments

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))


def fuzzed(share: float):
    """Settings of a fuzz test that makes up this share of all examples."""
    return settings(
        max_examples=max(1, round((EXAMPLES or 200) * share)),
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def check(case: Case, capfd: pytest.CaptureFixture, extra: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        configs = case.write(Path(name))
        capfd.readouterr()
        code = main(["run", "--config", str(configs), "--expid", case.expid, *extra])
        error = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
        event(f"exit code {code}")
        if code == 0:
            check_results(case, Path(name))
        else:
            assert code == 2
            assert case.hazards, f"refused without a reason: {error}"
            assert len(error) == 1, error
            keys = {key for column in case.columns for key in column.spec}
            names = (
                {column.name for column in case.columns}
                | keys
                | {*MISSPELT, "click", "LR", "train.", "valid.", "test.", "words.yaml"}
            )
            assert any(part in error[0] for part in names), error


def check_results(case: Case, folder: Path) -> None:
    assert "misspelt" not in case.hazards
    (record,) = (folder / "runs" / "fuzz").glob("*/*.run.json")
    metrics = read_json(record)["metrics"]
    for split in ("valid", "test"):
        assert metrics[split] and all(math.isfinite(value) for value in metrics[split].values()), metrics
    shared = {column.spec.get("share_embedding") for column in case.columns} - {None}
    for column in case.columns:
        if (
            column.spec["type"] not in ("categorical", "sequence")
            or column.name in shared
            or "share_embedding" in column.spec
        ):
            continue
        ids = read_json(folder / "data" / "fuzz" / "feature_vocab.json")[column.name]
        assert {*ids} - {"__PAD__", "__OOV__"} == case.expected_vocabulary(column), column


@fuzzed(0.8)
@given(case=cases())
def test_any_data_set_trains_or_is_refused_in_one_line(case, capfd):
    check(case, capfd, [])


@fuzzed(0.2)
@given(case=cases(methods=("LLaCTR", "ELEC", "LLMEmb")))
def test_any_data_set_works_with_a_method_or_is_refused_in_one_line(case, capfd, tiny_settings, llm):
    check(case, capfd, as_arguments(tiny_settings if "LLaCTR" in case.expid else llm))
