"""The table of gains and what they cost, and its plot, show what the records hold."""

import csv
import io

import numpy as np
import pytest

from fuxictr_llm.leaderboard.plan.plan import Arm
from fuxictr_llm.leaderboard.report.costs import hardest_control
from fuxictr_llm.leaderboard.report.evidence import summarize
from fuxictr_llm.leaderboard.report.figures import figures
from fuxictr_llm.leaderboard.report.gain_by_cost import FREE
from fuxictr_llm.leaderboard.report.report import make_report
from fuxictr_llm.leaderboard.report.tables import to_csv
from fuxictr_llm.leaderboard.run.archive import ArchivedRun
from fuxictr_llm.leaderboard.run.results import result_of
from support_tables import STRANGE, runs, shifted

BASE = [0.700, 0.712, 0.705, 0.698, 0.709]
SERVED = {"parameters": 5000, "milliseconds": 0.614, "batch_rows": 512, "threads": 1}
SECONDS = {"LLMEmb": 10.0, "KAR": 31.0, "ELEC": 32.0, "LLaCTR": 164.0}


def costs_of(results):
    """The table of costs, its cells by head."""
    (table,) = [table for table in make_report(summarize(results), results).tables if "cost" in table.title]
    return table, [dict(zip(table.heads, line.cells, strict=True)) for line in table.lines]


def made_up(datasets=("shop",), backbones=("FM", "DNN")):
    results = []
    for dataset in datasets:
        for index, backbone in enumerate(backbones):
            base = [auc + 0.01 * index for auc in BASE]
            free = {"train": 10.0, "test": 0.5, "language_model": 0.0}
            results += runs(None, None, base, backbone, dataset, seconds=free)
            for method, seconds in SECONDS.items():
                facts = {"seconds": {**free, "language_model": seconds}}
                results += runs(method, None, shifted(base, 0.004 + index / 500), backbone, dataset, **facts)
                results += runs(method, "noise", shifted(base, 0.001), backbone, dataset, **facts)
    return results


def test_a_line_has_what_a_method_gains_and_what_it_takes():
    tokens = {"tokens": {"read": 12_345, "written": 0}, "served": SERVED}
    results = [*runs(None, None, BASE, served=SERVED), *runs("ELEC", None, shifted(BASE, 0.01), **tokens)]
    results += runs("ELEC", "self", shifted(BASE, 0.002)) + runs("ELEC", "noise", shifted(BASE, 0.006))
    table, (plain, elec) = costs_of(results)
    assert [line.kind for line in table.lines] == ["plain", "method"]
    assert elec["gain over plain [95 %]"].startswith("+0.01000 [") and elec["logloss"].startswith("0.50000")
    assert elec["gain over placebo [95 %]"].startswith("+0.00400") and elec["placebo"] == "noise"
    assert (elec["language model s"], elec["tokens read"], elec["tokens written"]) == ("100", "12,345", "0")
    assert (elec["training s"], elec["parameters served"], elec["latency ms"]) == ("13", "5,000", "0.61")
    assert (plain["tokens read"], plain["gain over placebo [95 %]"], plain["placebo"]) == ("-", "-", "-")
    assert hardest_control(summarize(runs("ELEC", None, BASE))[0]) is None
    notes = make_report(summarize(results), results).notes
    assert sum("a batch of 512 rows on 1 thread of the CPU" in note for note in notes) == 1
    (_, line, *_) = csv.DictReader(io.StringIO(to_csv(summarize(results))))
    assert (line["tokens_read"], line["served_milliseconds"]) == ("12345", "0.614")


def test_records_of_earlier_versions_have_columns_less():
    table, _ = costs_of([*runs(None, None, BASE, tokens={"read": 0, "written": 0}), *runs("ELEC", None, BASE)])
    assert "language model s" in table.heads
    assert not {"tokens read", "latency ms", "parameters served", "gain over placebo [95 %]"} & {*table.heads}
    assert not any("cost" in table.title for table in make_report(summarize(runs(None, None, BASE))).tables)


def test_a_record_says_how_many_tokens_were_read_and_what_is_served():
    stages = {"encode": {"seconds": 0.1, "cached": True, "made_in": 7.0, "tokens_read": 900}, "train": {"seconds": 1.0}}
    record = {"stages": stages, "data": {}, "metrics": {}, "parameters": {}, "served": SERVED}
    run = ArchivedRun(Arm("FM", "shop", "KAR"), 1, "key")
    assert result_of(run, record).tokens == {"read": 900, "written": 0} and result_of(run, record).served == SERVED
    assert result_of(run, {**record, "served": None}).served == {}


def lines_of(axis, marker):
    return [line for line in axis.lines if line.get_marker() == marker]


def test_gains_stand_at_their_costs_and_what_asks_nothing_at_the_left():
    results = made_up()
    rows = summarize(results)
    (axis,) = figures(rows, results)["gain_by_cost_shop"].axes
    plain, *methods = [line for line in lines_of(axis, "o") if line.get_markersize() == 7]
    means = sorted(float(line.get_ydata()[0]) for line in methods)
    assert means == pytest.approx([0.005] * 4, abs=1e-5) and float(plain.get_ydata()[0]) == 0
    exact = sorted(float(line.get_xdata()[0]) for line in lines_of(axis, "|"))
    assert exact == pytest.approx(np.log10(sorted(SECONDS.values())))
    places = [float(line.get_xdata()[0]) for line in methods]
    assert places == sorted(places) and min(np.diff(places)) > 0.05  # in the order of the costs, none upon another
    assert (places[0], places[-1]) == pytest.approx((1.0, np.log10(164)))
    assert float(plain.get_xdata()[0]) < places[0] and axis.get_xticklabels()[0].get_text() == FREE
    labels = {label.get_text(): place for label, place in zip(axis.get_xticklabels(), axis.get_xticks(), strict=True)}
    assert labels["100"] == pytest.approx(2.0)
    hollow = [line for line in lines_of(axis, "s") if line.get_markerfacecolor() == "white"]
    assert [float(line.get_ydata()[0]) for line in hollow] == pytest.approx([0.001] * 4, abs=1e-5)
    dots = [line for line in lines_of(axis, "o") if line.get_markersize() == 3.5]
    each = [gain for line in dots for gain in sorted(line.get_ydata())]
    assert each == pytest.approx([0.004, 0.006] * 4, abs=1e-5)
    assert axis.get_ylim()[0] < 0 and axis.get_ylim()[1] > 0.006


def test_each_data_set_has_a_panel_and_what_is_not_known_is_left_out():
    datasets = ["shop", STRANGE, "other"]
    results = made_up(datasets, ["FM"]) + runs("CTRL", None, BASE, "FM", seconds={"train": 1.0})
    results += runs("CTRL", "noise", BASE, "FM")  # whose method has no point
    figure = figures(summarize(results), results)[f"gain_by_cost_shop-{STRANGE}-other"]
    figure.draw_without_rendering()
    assert [axis.get_title() for axis in figure.axes] == [*datasets, ""]
    legend = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"plain", "KAR", "control: noise"} <= legend and "one backbone" not in legend
    assert "gain_by_cost_shop" not in figures(summarize(runs(None, None, BASE)), runs(None, None, BASE))


def test_methods_that_ask_no_language_model_stand_beside_plain():
    free = {"train": 10.0, "language_model": 0.0}
    results = [*runs(None, None, BASE, seconds=free), *runs("ELEC", None, shifted(BASE, 0.01), seconds=free)]
    (axis,) = figures(summarize(results), results)["gain_by_cost_shop"].axes
    plain, elec = (line for line in lines_of(axis, "o") if line.get_markersize() == 7)
    (edge,) = [line for line in axis.lines if line.get_linestyle() == ":"]
    assert float(plain.get_xdata()[0]) < float(elec.get_xdata()[0]) < edge.get_xdata()[0]
