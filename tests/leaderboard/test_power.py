"""Planted effects: what decides is proven, a placebo that does as well is not, and the power is what was predicted."""

from math import sqrt

import numpy as np
import pytest
from scipy.stats import nct, t

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.leaderboard.report import LEVEL, compare
from fuxictr_llm.leaderboard.report.evidence import summarize
from fuxictr_llm.leaderboard.report.overall import over_backbones
from fuxictr_llm.leaderboard.report.power import DRAWS, Pilot, pilot_of, power_lines
from fuxictr_llm.leaderboard.report.verdicts import PLACEBO, PROVEN, UNPROVEN, Claim, judge
from support_tables import runs

NOISE = 0.001  # standard deviation of an arm's AUC over seeds
SEEDS = 5


def claim(draw, over_plain, over_controls, seeds=SEEDS, overlap=0.0):
    """A claim of runs with these true gains."""
    truth = {"method": 0.7, "plain": 0.7 - over_plain, **{f"c{i}": 0.7 - by for i, by in enumerate(over_controls)}}
    aucs = {name: dict(enumerate(auc + draw.normal(0, NOISE, seeds))) for name, auc in truth.items()}
    gains = {name: compare(aucs["method"], aucs[name], overlap) for name in truth if name != "method"}
    return Claim(gains.pop("plain"), gains)


def share_proven(make, times):
    """How often the first row of a table is proven, and how often any is."""
    kinds = [[verdict.kind for verdict in judge(make())] for _ in range(times)]
    return np.mean([of[0] == PROVEN for of in kinds]), np.mean([PROVEN in of for of in kinds])


def test_under_the_null_at_most_five_in_a_hundred_tables_prove_anything():
    draw, times = np.random.default_rng(0), 500
    error = 3 * sqrt(LEVEL * (1 - LEVEL) / times)
    # The worst null: far better than plain and one placebo, and as good as the other.
    one, _ = share_proven(lambda: [claim(draw, 0.1, (0.1, 0.0))], times)
    assert LEVEL - error < one < LEVEL + error
    _, any_row = share_proven(lambda: [claim(draw, 0.1, (0.1, 0.0)) for _ in range(4)], times)
    assert any_row < LEVEL + error
    _, of_nothing = share_proven(lambda: [claim(draw, 0.0, (0.0, 0.0))], times)
    assert of_nothing < LEVEL / 2


def test_splits_that_share_train_rows_prove_no_more_than_five_in_a_hundred_nulls():
    draw, times, overlap = np.random.default_rng(1), 1500, 0.25
    share = overlap / (1 + overlap)  # the correlation that Nadeau and Bengio take

    def p_value(corrected):
        values = draw.normal() * sqrt(share) + draw.normal(size=SEEDS) * sqrt(1 - share)
        splits = {(split, 1): float(value) for split, value in enumerate(values, 1)}
        return compare(splits, dict.fromkeys(splits, 0.0), overlap if corrected else 0.0).p

    rates = {corrected: np.mean([p_value(corrected) <= LEVEL for _ in range(times)]) for corrected in (True, False)}
    assert abs(rates[True] - LEVEL) < 3 * sqrt(LEVEL * (1 - LEVEL) / times)
    assert rates[False] > 1.5 * LEVEL


def test_the_power_of_one_comparison_is_that_of_the_noncentral_t():
    for n, gain in ((5, 0.002), (12, 0.001)):
        pilot = Pilot(np.array([[NOISE**2]]), n, 0.0, LEVEL, "seed")
        expected = nct.sf(t.isf(LEVEL, n - 1), n - 1, gain * sqrt(n) / NOISE)
        assert pilot.power(gain, n) == pytest.approx(expected, abs=3 * sqrt(0.25 / DRAWS))


@pytest.mark.parametrize(("rows", "gain"), [(1, 0.002), (4, 0.003)])
def test_the_power_of_a_table_is_as_predicted(rows, gain):
    """Of a row that gains in a table of others that do not; a single claim is a method's over all backbones."""
    draw, times = np.random.default_rng(2), 500
    covariance = NOISE**2 * (np.eye(3) + 1)  # all comparisons have the method's runs in common
    predicted = Pilot(covariance, SEEDS, 0.0, LEVEL / rows, "seed").power(gain, SEEDS)
    others = [(0.0, (0.0, 0.0))] * (rows - 1)
    seen, _ = share_proven(lambda: [claim(draw, gain, (gain, gain)), *(claim(draw, *other) for other in others)], times)
    assert 0.2 < predicted < 0.95
    assert seen == pytest.approx(predicted, abs=3 * sqrt(0.25 / times))


def test_the_seeds_that_are_said_to_be_needed_have_the_power():
    pilot = Pilot(NOISE**2 * (np.eye(3) + 1), 5, 0.0, LEVEL, "seed")
    needed = pilot.seeds_for(0.001)
    assert pilot.power(0.001, needed) >= 0.8 > pilot.power(0.001, needed - 1) - 0.02
    assert pilot.power(pilot.smallest_gain(), 5) == pytest.approx(0.8, abs=1e-3)
    assert pilot.seeds_for(0.1) == 5 and pilot.seeds_for(0.00001) is None
    assert pilot._replace(overlap=0.125).seeds_for(0.0005) is None  # however many splits


def table(draw, gain, of_placebo, seeds=8, controls=("random", "shuffled")):
    """Runs of LLaCTR on three backbones, whose words gain so much, and its placebos that much."""
    made = []
    for backbone in ("FM", "DNN", "DCN"):
        truth = {(None, None): 0.0, ("LLaCTR", None): gain, **{("LLaCTR", name): of_placebo for name in controls}}
        for arm, by in truth.items():
            made += runs(*arm, list(0.7 + by + draw.normal(0, NOISE, seeds)), backbone)
    return made


def test_words_that_decide_are_proven_and_a_placebo_that_does_as_well_shows():
    draw = np.random.default_rng(3)
    made = table(draw, 0.004, 0.0)
    (line, *_), rows = over_backbones(summarize(made), made), summarize(made)
    assert line.verdict.kind == PROVEN and line.verdicts[PROVEN] == 3
    assert [row.verdict for row in rows if row.verdict] == [PROVEN] * 3
    made = table(draw, 0.004, 0.004)
    line = over_backbones(summarize(made), made)[0]
    assert line.verdict.kind == PLACEBO and line.verdicts[PROVEN] == 0
    made = table(draw, 0.0, 0.0)
    assert over_backbones(summarize(made), made)[0].verdict.kind == UNPROVEN


def test_power_says_how_many_seeds_would_show_a_gain():
    made = table(np.random.default_rng(4), 0.0, 0.0)
    rows = summarize(made)
    overall = over_backbones(rows, made)
    head, method, *of_rows = power_lines(0.001, rows, overall)
    assert head.startswith(
        "shop: seeds that prove a gain of +0.00100 AUC over plain and over each control with 80% power"
    )
    pilot = pilot_of(overall[0].claim, LEVEL)
    expected = (
        f"  LLaCTR over all backbones: {pilot.seeds_for(0.001)} seeds (8 seeds: {pilot.power(0.001, 8):.0%}, or a gain"
    )
    assert method.startswith(expected)
    assert [line.split(":")[0] for line in of_rows] == ["  FM LLaCTR", "  DNN LLaCTR", "  DCN LLaCTR"]
    few = [run for run in made if run.seed <= 3]
    assert "(3 seeds prove nothing: a verdict needs 5)" in power_lines(0.001, *_of(few))[1]
    for lacking in ([], [run for run in made if run.seed == 1], [run for run in made if run.arm.control != "random"]):
        with pytest.raises(UserError, match="--power needs a pilot"):
            power_lines(0.001, *_of(lacking))


def _of(made):
    rows = summarize(made)
    return rows, over_backbones(rows, made)
