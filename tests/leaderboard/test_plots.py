"""Plots show the numbers of the rows, whatever there is of them."""

import warnings

import numpy as np
import pytest

from fuxictr_llm.common.pictures import png_of
from fuxictr_llm.leaderboard.report import PairedGain
from fuxictr_llm.leaderboard.report.evidence import summarize
from fuxictr_llm.leaderboard.report.figures import figures
from fuxictr_llm.leaderboard.report.plots import COLOURS, PALE, TOGETHER, colours_of, limits_of
from fuxictr_llm.registry import method_names
from support_tables import STRANGE, runs, shifted, slices

BASE = [0.700, 0.712, 0.705, 0.698, 0.709]
NAMES = [f"{STRANGE}{index}" for index in range(12)]


def results_of(backbones):
    made_up = []
    for index, name in enumerate(backbones):
        base = [auc + 0.01 * index for auc in BASE]
        made_up += runs(None, None, base, name)
        for method, controls in {"LLaCTR": ("random", "shuffled"), "ELEC": ("self",)}.items():
            made_up += runs(method, None, shifted(base, 0.004 + index / 1000), name)
            for control in controls:
                made_up += runs(method, control, shifted(base, 0.001), name)
    return made_up


def markers(axis):
    return [line for line in axis.lines if line.get_marker() not in ("None", None) and line.get_linestyle() == "None"]


def test_gains_stand_at_their_backbones_with_controls_hollow():
    results = results_of(["FM", "DNN"])
    rows = summarize(results)
    figure = figures(rows, results)["gain_shop"]
    llactr, elec = figure.axes
    assert [axis.get_title() for axis in figure.axes] == ["LLaCTR", "ELEC"]
    assert [label.get_text() for label in llactr.get_yticklabels()] == ["FM", "DNN", TOGETHER]
    for axis in figure.axes:
        of = [row for row in rows if row.method == axis.get_title()]
        shown = {round(float(line.get_xdata()[0]), 9) for line in markers(axis)}
        assert {round(row.over_plain.mean, 9) for row in of} <= shown
        hollow = [line.get_markerfacecolor() == "white" for line in markers(axis)]
        assert sum(hollow) == 3 * len({row.control for row in of if row.control})  # in both backbones and together
        for line in markers(axis):
            assert axis.get_xlim()[0] < line.get_xdata()[0] < axis.get_xlim()[1]
    (fm,) = [row for row in rows if (row.backbone, row.arm) == ("FM", "ELEC")]
    ends = [sorted(line.get_xdata()) for line in elec.lines if len(line.get_xdata()) == 2]
    assert [fm.over_plain.low, fm.over_plain.high] in [pytest.approx(of) for of in ends]
    together = [line for line in markers(elec) if round(float(line.get_ydata()[0])) == 2]
    assert [float(line.get_xdata()[0]) for line in together] == pytest.approx([0.0045, 0.001], abs=5e-6)


def test_a_gain_of_one_seed_does_not_look_like_a_sure_one():
    results = [*runs(None, None, BASE, "FM"), *runs("ELEC", None, shifted(BASE, 0.01), "FM")]
    results += [*runs(None, None, [0.7], "DNN"), *runs("ELEC", None, [0.71], "DNN")]
    drawn = figures(summarize(results), results)
    for name, points in {"gain": {0: None, 1: PALE, 2: PALE}, "frequency": {1: PALE, 2: PALE, 3: PALE}}.items():
        (axis,) = drawn[f"{name}_shop"].axes
        big = [line for line in markers(axis) if line.get_markersize() == 7]
        spots = [line.get_ydata() if name == "gain" else line.get_xdata() for line in big]
        assert {round(float(spot[0])): line.get_alpha() for spot, line in zip(spots, big, strict=True)} == points
        (legend,) = drawn[f"{name}_shop"].legends
        assert "no interval" in [text.get_text() for text in legend.get_texts()]
    sure = figures(summarize(results[:8]), results[:8])["gain_shop"].legends[0]
    assert "no interval" not in [text.get_text() for text in sure.get_texts()]


def test_cost_is_training_and_language_model():
    results = results_of(["FM", "DNN"]) + runs(None, None, BASE, "LR", seconds={"train": 1.0})  # the other: not known
    (axis,) = figures(summarize(results), results)["cost_shop"].axes
    spots = {tuple(map(float, (line.get_xdata()[0], line.get_ydata()[0]))) for line in markers(axis)}
    assert axis.get_xscale() == "log"
    assert {x for x, _ in spots} == {13.0, 113.0}
    assert len(markers(axis)) == 6
    assert min(spots) == pytest.approx((13.0, np.mean(BASE))) and [text.get_text() for text in axis.texts] == [
        "FM",
        "DNN",
    ]


def test_gains_on_slices_are_means_over_backbones_and_few_rows_are_not_drawn():
    results = results_of(["FM", "DNN"])
    results += runs(None, None, BASE, "LR", slices=None) + runs("ELEC", None, shifted(BASE, 0.1), "LR", slices=None)
    results += runs(None, None, BASE, "FFM") + runs("ELEC", None, BASE, "FFM", slices=slices(0.9) | {"slices": {}})
    results += runs(None, None, BASE, "DCN") + runs("ELEC", None, BASE, "DCN", slices=slices(0.9) | {"by": "user_id"})
    (axis,) = figures(summarize(results), results)["frequency_shop"].axes
    big = [line for line in markers(axis) if line.get_markersize() == 7]
    assert len(big) == 3 * 2  # three slices, two methods; 40 rows are too few
    assert {round(float(line.get_ydata()[0]), 5) for line in big} == {0.0045}
    unseen, rare, *_ = [label.get_text() for label in axis.get_xticklabels()]
    assert unseen.endswith("40 test rows\n(too few to draw)") and rare == "rare\n1 to 9 in train\n400 test rows"


def test_limits_hold_every_mean_and_let_wide_intervals_go_on():
    def gain(mean, half):
        return PairedGain((1, 2), mean, mean - half, mean + half, 0.5, 0.0, 0.0)

    low, high = limits_of([gain(0.01, 0.002), gain(0.02, 0.002), gain(-0.01, 0.002), gain(0.0, 5.0)])
    assert -0.02 < low < -0.012 and 0.022 < high < 0.03
    one = PairedGain((1,), 0.01, None, None, None, 0.0, 0.0)
    assert limits_of([one])[0] < 0 < 0.01 < limits_of([one])[1]
    nothing = PairedGain((1,), 0.0, None, None, None, 0.0, 0.0)
    assert limits_of([nothing])[0] < 0 < limits_of([nothing])[1]


def test_twelve_backbones_and_two_data_sets_are_drawn_without_a_warning():
    results = [run for name in NAMES for method in (None, "ELEC") for run in runs(method, None, [0.7], name)]
    results += [run for method in (None, "ELEC") for run in runs(method, None, [0.7], STRANGE, dataset="other")]
    rows = summarize(results)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = figures(rows, results)
        drawn["gain_other"].draw_without_rendering()
        assert png_of(drawn["cost_other"]).startswith(b"\x89PNG")
    assert list(drawn) == ["gain_by_cost_shop-other"] + [
        f"{name}_{data}" for data in ("shop", "other") for name in ("gain", "cost", "frequency")
    ]
    names = [label.get_text() for label in drawn["gain_shop"].axes[0].get_yticklabels()]
    assert names == [*NAMES, TOGETHER]
    assert sorted(text.get_text() for text in drawn["cost_shop"].axes[0].texts) == sorted(NAMES)


def test_a_method_has_one_colour_in_every_table_and_no_two_the_same():
    rows = summarize([run for name in (*method_names(), "Own", "Mine") for run in runs(name, None, BASE)])
    colours = colours_of(rows)
    assert len({*colours.values()}) == len(colours) and {colours["Own"], colours["Mine"]} <= {*COLOURS}
    assert colours_of([row for row in reversed(rows) if row.method == "LLaCTR"]) == {"LLaCTR": colours["LLaCTR"]}
