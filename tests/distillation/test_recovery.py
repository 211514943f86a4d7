"""The recovery of what a gain network gains over its plain backbone."""

import pytest

from fuxictr_llm.distillation.recovery import Recovery, recovery_of


def networks(plain, gain, name="AUC"):
    facts = {"plain": plain, "gain": gain}
    return {key: {"metrics": {"valid": {name: value}}} for key, value in facts.items() if value is not None}


@pytest.mark.parametrize(
    ("plain", "gain", "student", "share"), [(0.7, 0.74, 0.72, 0.5), (0.7, 0.69, 0.72, None), (0.7, 0.7, 0.7, None)]
)
def test_a_share_is_of_a_gain_alone(plain, gain, student, share):
    found = recovery_of(networks(plain, gain), "valid", ["logloss", "AUC"], {"valid": {"AUC": student}})
    assert found.gain == pytest.approx(gain - plain) and found.student == pytest.approx(student - plain)
    assert found.share == (share and pytest.approx(share))
    assert ("recovery 50%" in str(found)) == (share is not None)


def test_a_loss_is_better_where_it_is_lower():
    found = recovery_of(networks(0.5, 0.4, "logloss"), "valid", ["logloss"])
    assert (
        found == Recovery("logloss", pytest.approx(0.1)) and str(found) == "gain network over plain +0.100000 logloss"
    )


def test_nothing_is_said_of_what_was_not_measured():
    assert recovery_of(networks(0.7, None), "valid", ["AUC"]) is None
    assert recovery_of(networks(0.7, 0.8), "test", ["AUC"]) is None
    assert recovery_of({**networks(0.7, 0.8), "gain": {"metrics": None}}, "valid", ["AUC"]) is None
