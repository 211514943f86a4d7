"""Gains against numbers worked out by hand and scipy, Holm's correction against a literal, and every verdict."""

from math import sqrt
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import t, ttest_rel

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.leaderboard.plan.plan import Arm
from fuxictr_llm.leaderboard.report import compare, holm
from fuxictr_llm.leaderboard.report.evidence import summarize
from fuxictr_llm.leaderboard.report.overall import over_backbones
from fuxictr_llm.leaderboard.report.verdicts import PLACEBO, PROVEN, UNPROVEN, WORSE
from fuxictr_llm.leaderboard.run.results import Failure
from support_tables import runs, shifted

BASE = [0.700, 0.712, 0.705, 0.698, 0.709]


def test_a_gain_is_that_of_the_paired_t_test_at_the_common_seeds():
    ours, others = {1: 0.801, 2: 0.702, 3: 0.703, 9: 0.9}, {3: 0.700, 2: 0.700, 1: 0.800, 4: 0.1}
    gain = compare(ours, others)
    assert gain.seeds == (1, 2, 3) and gain.mean == pytest.approx(0.002)  # of 0.001, 0.002 and 0.003
    half = 4.302653 * 0.001 / sqrt(3)  # the quantile of t with two degrees of freedom
    assert (gain.low, gain.high) == pytest.approx((0.002 - half, 0.002 + half))
    assert gain.p == pytest.approx(0.0741799 / 2)  # one-sided
    assert gain.relative == pytest.approx(2.206 / 2.2 - 1)
    assert gain.rela_impr == pytest.approx((2.206 / 3 - 0.5) / (2.2 / 3 - 0.5) - 1)
    draw = np.random.default_rng(0)
    a, b = draw.normal(0.70, 0.01, 6), draw.normal(0.71, 0.01, 6)
    gain = compare(dict(enumerate(a)), dict(enumerate(b)))
    differences = a - b
    se = differences.std(ddof=1) / sqrt(6)
    assert gain.p == pytest.approx(ttest_rel(a, b, alternative="greater").pvalue)
    assert (gain.low, gain.high) == pytest.approx(differences.mean() + np.array([-1, 1]) * t.ppf(0.975, 5) * se)


@pytest.mark.parametrize(
    ("ours", "others", "why"),
    [
        ({1: 0.8}, {1: 0.7, 2: 0.6}, "one common seed"),
        ({1: 0.8, 2: 0.9}, {1: 0.7, 2: 0.8}, "the same difference at every seed"),
        ({1: 0.5, 2: 0.6, 3: 0.7}, {1: 0.5, 2: 0.6, 3: 0.7}, "the same difference at every seed"),
    ],
)  # fmt: skip
def test_without_a_test_there_is_a_gain_and_no_interval(ours, others, why):
    gain = compare(ours, others)
    assert (gain.low, gain.high, gain.p, gain.why_no_test) == (None, None, None, why)
    assert gain.mean == pytest.approx(ours[1] - others[1])


def test_gains_of_nothing_and_over_chance():
    assert compare({1: 0.7}, {2: 0.7}) is None
    assert compare({1: 0.7}, {1: 0.5}).rela_impr is None and compare({1: 0.6}, {1: 0.4}).rela_impr is None
    assert compare({1: 0.6}, {1: 0.0}).relative is None


@pytest.mark.parametrize(
    ("p_values", "corrected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, 0.4], [0.8, 0.8]),
        ([0.9, 0.2, 0.6], [1.0, 0.6, 1.0]),
        ([0.02, 0.02], [0.04, 0.04]),
        ([0.04], [0.04]),
        ([], []),
    ],
)  # fmt: skip
def test_holm_steps_down(p_values, corrected):
    assert holm(p_values) == pytest.approx(corrected)


def llactr(gain, random=None, shuffled=None, base=BASE):
    """Rows of a plain DeepFM and one with LLaCTR, with the gains of its controls; None: not run."""
    made_up = [*runs(None, None, base), *runs("LLaCTR", None, shifted(base, gain))]
    for control, of in {"random": random, "shuffled": shuffled}.items():
        made_up += [] if of is None else runs("LLaCTR", control, [auc + of + 1e-6 * i for i, auc in enumerate(base)])
    return made_up


@pytest.mark.parametrize(
    ("results", "verdict", "why"),
    [
        (llactr(0.01, 0.001, 0.002), PROVEN, "better than plain and than random, shuffled"),
        (
            llactr(0.01, 0.001, 0.002, base=BASE[:4]),
            UNPROVEN,
            "4 seeds; a verdict needs 5",
        ),
        (llactr(0.01, 0.001, 0.01), PLACEBO, "not surely better than shuffled"),
        (llactr(0.01, 0.02, 0.01), PLACEBO, "not surely better than random, shuffled"),
        (
            llactr(0.01, None, 0.01),
            PLACEBO,
            "not surely better than shuffled; control random (no finished run): nothing can be proven",
        ),
        (
            llactr(0.01, 0.001, None),
            UNPROVEN,
            "better than plain; control shuffled (no finished run): nothing can be proven",
        ),
        (llactr(0.01), UNPROVEN, "better than plain; no controls run (random, shuffled): nothing can be proven"),
        (llactr(0.000005, 0.0, 0.0), UNPROVEN, "within the noise of seeds"),
        (
            llactr(0.000005),
            UNPROVEN,
            "within the noise of seeds; no controls run (random, shuffled): nothing can be proven",
        ),
        (llactr(-0.01, 0.001, 0.001), WORSE, "than the plain backbone"),
        (llactr(0.01, 0.001, 0.001, base=[0.7]), UNPROVEN, "one common seed"),
        (runs("LLaCTR", None, BASE), UNPROVEN, "no run of the plain backbone at these seeds"),
        (
            [*runs(None, None, {1: 0.7, 2: 0.71, 3: 0.72}), *runs("LLaCTR", None, {2: 0.6, 3: 0.61, 4: 0.9})],
            UNPROVEN,
            "the same difference at every seed; compared with plain at seed 2, 3 only",
        ),
        (
            [*llactr(0.01), *runs("LLaCTR", "random", {2: 0.71}), *runs("LLaCTR", "shuffled", BASE)],
            UNPROVEN,
            "better than plain; control random (one common seed): nothing can be proven; compared with random at seed 2 only",
        ),
        (
            [*llactr(0.01, None, 0.001), *runs("LLaCTR", "random", {1: 0.70, 2: 0.74})],
            UNPROVEN,
            "better than plain; control random (2 seeds of 5): nothing can be proven; compared with random at seed 1, 2 only",
        ),
        (
            [*llactr(0.01, None, 0.001), *runs("LLaCTR", "random", shifted(BASE, 0.01))],
            PLACEBO,
            "not surely better than random",
        ),
        (
            [*runs(None, None, [0.7, 0.71]), *runs("LLaCTR", None, BASE[:2], metrics={"valid": {"AUC": 0.7}, "test": {}})],
            UNPROVEN,
            "no test AUC",
        ),
    ],
)  # fmt: skip
def test_verdicts(results, verdict, why):
    (row,) = [row for row in summarize(results) if row.arm == "LLaCTR"]
    assert (row.verdict, row.why) == (verdict, why)
    assert all(not row.verdict for row in summarize(results) if row.arm != "LLaCTR")


def test_a_method_that_a_config_calls_by_another_name_needs_every_control_as_well():
    record = {"config": {"method": "LLaCTR"}}
    results = [*runs(None, None, BASE), *runs("Mine", None, shifted(BASE, 0.01), record=record)]
    results += runs("Mine", "random", BASE, record=record)
    (row,) = [row for row in summarize(results) if row.arm == "Mine"]
    assert (row.verdict, row.why) == (
        UNPROVEN,
        "better than plain; control shuffled (no finished run): nothing can be proven",
    )


def test_a_rows_p_is_the_largest_of_its_comparisons_and_holm_corrects_over_the_rows_of_a_data_set():
    draw = np.random.default_rng(0)

    def noisy(by):
        return [auc + by + noise for auc, noise in zip(BASE, draw.normal(0, 0.001, 5), strict=True)]

    arms = {(method, control): noisy(by) for method, control, by in (
        ("LLaCTR", None, 0.003), ("LLaCTR", "random", 0.001), ("LLaCTR", "shuffled", 0.0005),
        ("ELEC", None, 0.002), ("ELEC", "self", 0.001), ("ELEC", "noise", 0.001),
    )}  # fmt: skip
    results = [*runs(None, None, BASE)]
    for (method, control), aucs in arms.items():
        results += runs(method, control, aucs)
    elsewhere = [run for arm, aucs in arms.items() for run in runs(*arm, aucs, dataset="other")]
    rows = summarize([*results, *runs(None, None, BASE, dataset="other"), *elsewhere])

    def p(method, others):
        return max(ttest_rel(arms[method, None], aucs, alternative="greater").pvalue for aucs in others)

    expected = holm([
        p(method, [BASE, *(aucs for (of, control), aucs in arms.items() if of == method and control)])
        for method in ("LLaCTR", "ELEC")
    ])  # fmt: skip
    for dataset in ("shop", "other"):
        assert [row.p for row in rows if row.verdict and row.dataset == dataset] == pytest.approx(expected)


def test_one_row_is_not_corrected_and_one_of_many_may_be_significant_only_before():
    gains = [0.001, 0.003, 0.002, 0.0005, 0.001]
    better = [auc + gain for auc, gain in zip(BASE, gains, strict=True)]  # p of 0.015
    of_one = [*runs(None, None, BASE), *runs("LLaCTR", None, better), *runs("LLaCTR", "random", BASE)]
    of_one += runs("LLaCTR", "shuffled", BASE)
    (row,) = [row for row in summarize(of_one) if row.verdict]
    assert row.verdict == PROVEN and row.p == row.over_plain.p
    noise = [0.70, 0.73, 0.69, 0.70, 0.71]
    for name in ("FM", "DNN", "DCN"):
        of_one += [*runs(None, None, BASE, name), *runs("LLaCTR", None, noise, name)]
        of_one += [*runs("LLaCTR", "random", BASE, name), *runs("LLaCTR", "shuffled", BASE, name)]
    row = next(row for row in summarize(of_one) if row.verdict)
    assert (row.verdict, row.why) == (UNPROVEN, "significant only before Holm's correction")
    assert row.p == pytest.approx(4 * row.over_plain.p)


def test_controls_that_failed_are_named_and_nothing_is_proven():
    failed = [Failure(Arm("DeepFM", "shop", "LLaCTR", "random"), seed, "k", "killed") for seed in range(1, 6)]
    for rows in (summarize(llactr(0.01, None, 0.001), failed), summarize(llactr(0.01, None, None), failed)):
        (row,) = [row for row in rows if row.verdict]
        assert row.verdict == UNPROVEN
        assert "random (failed)" in row.why
        assert row.why.endswith("nothing can be proven")


def test_of_several_splits_the_differences_are_means_over_seeds_and_the_error_is_nadeaus_and_bengios():
    ours = {(1, 1): 0.71, (1, 2): 0.73, (2, 1): 0.70, (2, 2): 0.72, (3, 1): 0.75}
    others = {(1, 1): 0.70, (1, 2): 0.70, (2, 1): 0.70, (2, 2): 0.71, (3, 1): 0.72, (4, 1): 0.9}
    gain, plain = compare(ours, others, overlap=0.125), compare(ours, others)
    assert dict(gain.differences) == pytest.approx({1: 0.02, 2: 0.005, 3: 0.03}) and gain.unit == "split"
    error = np.std([0.02, 0.005, 0.03], ddof=1) * sqrt(1 / 3 + 0.125)
    assert gain.mean == pytest.approx(0.055 / 3) and gain.p == pytest.approx(t.sf(gain.mean / error, 2))
    assert (gain.high - gain.low) / (plain.high - plain.low) == pytest.approx(sqrt((1 / 3 + 0.125) * 3))


def test_a_row_has_means_times_and_what_is_not_done():
    of_two = {"valid": {"AUC": 0.6}, "test": {"AUC": 0.75, "a_AUC": 0.9, "b_AUC": 0.6, "gAUC": 0.65}}
    results = [*runs(None, None, [0.70, 0.72, 0.77]), *runs("ELEC", None, {2: 0.75}, metrics=of_two)]
    results += runs("ELEC", None, {1: 0.71}, seconds={"train": 5.0, "test": 1.5}, rows={"test": 500})
    results += runs("ELEC", None, {4: float("nan")})
    failed = [Failure(Arm("DeepFM", "shop", "ELEC"), seed, "k", "killed") for seed in (2, 3)]
    failed += [Failure(Arm("FM", "shop"), 1, "k", "full disk")]
    planned = [
        SimpleNamespace(arm=Arm("DeepFM", "shop", method), repeat=seed)
        for method in (None, "ELEC")
        for seed in range(6)
    ]
    fm, *_ = rows = summarize(results, failed, [SimpleNamespace(arm=Arm("FM", "shop"), repeat=1), *planned])
    assert [(row.backbone, row.arm) for row in rows] == [("FM", "plain"), ("DeepFM", "plain"), ("DeepFM", "ELEC")]
    assert (fm.seeds, fm.failed, fm.missing, fm.test) == ((), (1,), (), {})
    _, plain, elec = rows
    assert plain.test["AUC"] == pytest.approx((0.73, sqrt(0.0013), 3)) and plain.inference_ratio == 1
    assert plain.seconds["train"] == 12 and plain.parameters == {"backbone": 5000, "method": 0}
    assert (plain.seeds, plain.missing) == ((1, 2, 3), (0, 4, 5))
    assert (elec.seeds, elec.failed, elec.missing) == ((1, 2, 4), (3,), (0, 5))  # the run at seed 2 is done by now
    assert elec.test["AUC"] == pytest.approx((0.73, sqrt(0.0008), 2))  # nan is no AUC; of several tasks the mean
    assert elec.test["gAUC"] == (0.65, None, 1) and elec.over_plain.seeds == (1, 2)
    assert elec.seconds["language_model"] == 100 and elec.inference_ratio == 1  # the median of 6, 1 and 1


def test_rows_stand_as_planned_with_plain_first_and_controls_after_their_method():
    arms = [
        ("ELEC", "self"),
        ("ELEC", None),
        ("LLaCTR", "shuffled"),
        ("LLaCTR", None),
        ("LLaCTR", "random"),
        (None, None),
    ]
    results = [run for name in ("FM", "DNN") for arm in arms for run in runs(*arm, [0.7], name)]
    expected = ["plain", "ELEC", "ELEC self", "LLaCTR", "LLaCTR shuffled", "LLaCTR random"]
    assert [(row.backbone, row.arm) for row in summarize(results)] == [(b, a) for b in ("FM", "DNN") for a in expected]


def test_two_results_of_one_arm_at_one_seed_are_an_error():
    with pytest.raises(UserError, match="two results of DeepFM LLaCTR on 'shop' at seed 2"):
        summarize([*runs("LLaCTR", None, [0.7, 0.7]), *runs("LLaCTR", None, {2: 0.8})])


def test_over_all_backbones_seeds_are_those_that_all_have():
    results = [
        *runs(None, None, {1: 0.70, 2: 0.72, 3: 0.9}, "FM"),
        *runs("LLaCTR", None, {1: 0.71, 2: 0.75, 3: 0.1}, "FM"),
    ]
    results += [*runs(None, None, {1: 0.60, 2: 0.62}, "DNN"), *runs("LLaCTR", None, {1: 0.63, 2: 0.61}, "DNN")]
    results += runs("LLaCTR", None, {1: 0.9}, "DeepFM")  # has no plain run
    results += [
        *runs("LLaCTR", "random", {1: 0.66, 2: 0.69}, "FM"),
        *runs("LLaCTR", "random", {2: 0.60, 3: 0.9}, "DNN"),
    ]
    line, control = over_backbones(summarize(results), results)
    assert control.over_control.seeds == (2,) and control.over_control.mean == pytest.approx(
        (0.75 + 0.61 - 0.69 - 0.60) / 2
    )
    assert line.over_control is None and not control.verdicts and control.verdict is None
    assert (line.verdict.kind, line.verdict.why) == (
        UNPROVEN,
        "not compared with plain on DeepFM: nothing can be proven",
    )
    assert (line.backbones, line.better, line.gain.seeds) == (("FM", "DNN"), 1, (1, 2))
    expected = compare({1: 0.67, 2: 0.68}, {1: 0.65, 2: 0.67})
    assert (line.gain.mean, line.gain.low, line.gain.p) == pytest.approx((expected.mean, expected.low, expected.p))
    assert line.verdicts == {PROVEN: 0, PLACEBO: 0, WORSE: 0, UNPROVEN: 3}


def over_two(aucs, controls=("random", "shuffled"), backbones=("FM", "DNN")):
    """Runs of LLaCTR on two backbones."""
    results = []
    for name in backbones:
        results += [*runs(None, None, BASE, name), *runs("LLaCTR", None, aucs, name)]
        results += [run for control in controls for run in runs("LLaCTR", control, shifted(BASE, 0.001), name)]
    return results


def verdict_of(results, failures=()):
    line = over_backbones(summarize(results, failures), results)[0]
    return line.verdict


def test_a_methods_verdict_is_over_all_backbones_and_is_not_corrected():
    noisy = [auc + by for auc, by in zip(BASE, (0.008, 0.001, 0.004, 0.003, 0.003), strict=True)]
    verdict = verdict_of(over_two(noisy))
    assert (verdict.kind, verdict.why) == (PROVEN, "better than plain and than random, shuffled")
    over = compare(dict(enumerate(noisy)), dict(enumerate(shifted(BASE, 0.001))))
    assert verdict.p == pytest.approx(over.p)  # the same on both backbones
    assert verdict_of(over_two(shifted(BASE, 0.001))).kind == PLACEBO
    assert verdict_of(over_two(shifted(BASE, -0.01))).kind == WORSE


def test_a_control_or_a_seed_that_one_backbone_lacks_shows_in_the_methods_verdict():
    better = [auc + 0.01 + 1e-4 * index for index, auc in enumerate(BASE)]
    one = [*over_two(better, backbones=["FM"]), *over_two(better, ["random"], ["DNN"])]
    verdict = verdict_of(one)
    assert (verdict.kind, verdict.why) == (
        UNPROVEN,
        "better than plain; control shuffled (no run on DNN): nothing can be proven",
    )
    failures = [Failure(Arm("DNN", "shop", "LLaCTR", "shuffled"), 1, "k", "killed")]
    assert verdict_of(one, failures).why == verdict.why.replace("no run on", "failed on")
    none = verdict_of([run for run in over_two(better) if not run.arm.control])
    assert none.why == "better than plain; no controls run (random, shuffled): nothing can be proven"
    base6 = [*BASE, 0.7]
    six = [*runs(None, None, base6), *runs("LLaCTR", None, shifted(base6, 0.01)), *runs("LLaCTR", "random", base6)]
    six += runs("LLaCTR", "shuffled", base6)
    verdict = verdict_of([*six, *over_two(better, backbones=["FM"])])
    assert verdict.kind == PROVEN and "compared with plain at seed 1, 2, 3, 4, 5 only" in verdict.why
    assert verdict_of([run for run in six if run.seed < 5]).why.startswith("4 seeds; a verdict needs 5")


def test_an_auc_that_is_not_a_number_costs_its_seed_everywhere():
    aucs = [*shifted(BASE, 0.01)[:4], float("nan")]
    verdict = verdict_of(over_two(aucs))
    assert (verdict.kind, verdict.why.split(";")[0]) == (UNPROVEN, "4 seeds")


@pytest.mark.parametrize(
    ("settings", "missing"),
    [({}, ["shuffled"]), ({"cold_values": "words"}, ["shuffled", "cold_mean", "cold_shuffled"])],
)
def test_controls_of_a_part_that_is_left_out_are_not_asked_for(settings, missing):
    record = {"config": {"method": "LLMEmb", **settings}}
    results = [*runs(None, None, BASE), *runs("LLMEmb", None, shifted(BASE, 0.01), record=record)]
    results += runs("LLMEmb", "shuffled", BASE, record=record)
    (row,) = [row for row in summarize(results) if row.arm == "LLMEmb"]
    assert list(row.over_controls) == missing
