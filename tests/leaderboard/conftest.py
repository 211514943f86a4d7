"""Plans of tiny runs on the data set `shop`."""

import pytest

from fuxictr_llm.leaderboard.plan.plan import Plan


@pytest.fixture
def plan(configs):
    """Makes a plan: two backbones, two seeds and one epoch, unless it is given others."""

    def make(backbones=("FM", "LR"), methods=("plain",), seeds=(1, 2), controls=False, **changes):
        overrides = {"epochs": 1, **changes}
        others = {"seeds": seeds, "config": str(configs), "overrides": overrides}
        return Plan.crossed(list(backbones), ["shop"], list(methods), controls=controls, **others)

    return make
