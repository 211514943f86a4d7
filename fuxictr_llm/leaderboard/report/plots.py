"""Plots of a leaderboard: gains by backbone, AUC against cost, gains by item frequency; one of each a data set.

A method has one colour in all of them, its controls the same, hollow. Colours are safe for colour-blind readers.
"""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fuxictr_llm.common.pictures import GREY
from fuxictr_llm.common.runs import total
from fuxictr_llm.leaderboard.report import PairedGain
from fuxictr_llm.leaderboard.report.evidence import PROVEN, ArmRow, Runs, mean_gain, over_backbones, runs_by_row
from fuxictr_llm.leaderboard.report.plot_parts import (
    GAINS,
    add_title,
    alpha_of,
    colours_of,
    draw_interval,
    limits_of,
    marker_look,
    markers_of,
    name_points,
    new_figure,
)
from fuxictr_llm.leaderboard.run.results import RunResult

FEWEST_ROWS = 100  # of a slice: the AUC of fewer rows is noise that would set the scale of all
FIGURE_WIDTH = 7.5
BAND = "#F3F3F3"
TOGETHER = "all together"  # the band of the gains averaged over backbones
MeanAndEach = tuple[PairedGain, list[PairedGain]]  # the gain averaged over backbones, and that of each
OnSlices = dict[tuple[int, str], MeanAndEach]  # by the position of the slice and the method


def figures(rows: Sequence[ArmRow], results: Iterable[RunResult]) -> dict[str, Figure]:
    """`gain_`, `cost_` and `frequency_<data set>`, each where there is something to draw.

    Args:
        rows: from `summarize`.
        results: the finished runs that the rows are of.
    """
    results = list(results)
    runs, colours = runs_by_row(results), colours_of(rows)
    drawn: dict[str, Figure | None] = {}
    for dataset in dict.fromkeys(row.dataset for row in rows):
        on_data = [row for row in rows if row.dataset == dataset]
        drawn[f"gain_{dataset}"] = gain_by_backbone(dataset, [*on_data, *_together(on_data, results)], colours)
        drawn[f"cost_{dataset}"] = auc_by_cost(dataset, on_data, colours)
        drawn[f"frequency_{dataset}"] = gain_by_frequency(dataset, on_data, runs, colours)
    return {name: figure for name, figure in drawn.items() if figure is not None}


def png_of(figure: Figure) -> bytes:
    """The content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", bbox_inches="tight", pad_inches=0.15)
    return content.getvalue()


def gain_by_backbone(dataset: str, rows: Sequence[ArmRow], colours: Mapping[str, str]) -> Figure | None:
    """Gains over plain with their 95 % intervals: a column a method, a band a backbone; None without any."""
    by_method: dict[str, list[tuple[ArmRow, PairedGain]]] = {}
    for row in rows:
        if row.method and row.over_plain:
            by_method.setdefault(row.method, []).append((row, row.over_plain))
    pairs = [pair for of_method in by_method.values() for pair in of_method]
    if not pairs:
        return None
    backbones = list(dict.fromkeys(row.backbone for row in rows if row.over_plain))
    controls, limits = markers_of(row for row, _ in pairs), limits_of(gain for _, gain in pairs)
    lines = max(len({row.arm for row, _ in of_method}) for of_method in by_method.values())
    width, height = max(FIGURE_WIDTH, 2.3 * len(by_method) + 1), 1.4 + len(backbones) * (0.15 * lines + 0.12)
    figure, axes = new_figure(width, height, len(by_method))
    for axis, (method, of_method) in zip(axes, by_method.items(), strict=True):
        colour = colours[method]
        axis.set_title(method, fontsize=11, color=colour, parse_math=False)
        _draw_bands(axis, backbones)
        arms = list(dict.fromkeys(row.arm for row, _ in of_method))
        for row, gain in of_method:
            place = backbones.index(row.backbone) + (arms.index(row.arm) - (len(arms) - 1) / 2) * 0.8 / lines
            draw_interval(axis, gain, place, limits, color=colour, linewidth=1.0 if row.control else 2.0)
            axis.plot(gain.mean, place, linestyle="", zorder=3, **marker_look(row, gain, colour, controls))
    axes[0].set_xlim(limits)
    axes[0].xaxis.set_major_formatter(GAINS)
    axes[0].locator_params(axis="x", nbins=6 if len(by_method) == 1 else 3)
    axes[0].set_yticks(range(len(backbones)), backbones, parse_math=False)
    axes[0].set_ylim(len(backbones) - 0.5, -0.5)
    figure.supxlabel("gain in test AUC over the plain backbone, with its 95 % interval", fontsize=10)
    proven, pale = any(row.verdict == PROVEN for row, _ in pairs), any(gain.interval is None for _, gain in pairs)
    add_title(figure, dataset, {}, controls, proven=proven, pale=pale)
    return figure


def auc_by_cost(dataset: str, rows: Sequence[ArmRow], colours: Mapping[str, str]) -> Figure | None:
    """Mean test AUC against seconds of training and of the language model; a line joins a method to its backbone."""
    points = {
        (row.backbone, row.method): (cost, row.test["AUC"].mean)
        for row in rows
        if not row.control and "AUC" in row.test and (cost := _cost(row))
    }
    if not points:
        return None
    methods = {method for _, method in points}
    figure, (axis,) = new_figure(FIGURE_WIDTH, 4.6)
    axis.set_xscale("log")
    for (backbone, method), point in points.items():
        colour = colours[method] if method else GREY
        if method and (backbone, None) in points:
            axis.plot(*zip(points[backbone, None], point, strict=True), color=colour, linewidth=0.8, alpha=0.45)
        axis.plot(*point, marker="o", markersize=7, color=colour, markeredgecolor="white", linestyle="", zorder=3)
    costs = [cost for cost, _ in points.values()]
    axis.set_xlim(min(costs) / 1.5, max(costs) * 1.5)
    axis.set_xlabel("seconds of training and of the language model (log scale)")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.spines["left"].set_visible(False)
    axis.spines["right"].set_visible(True)
    axis.yaxis.tick_right()
    axis.yaxis.set_label_position("right")
    axis.set_ylabel("mean test AUC")
    axis.grid(color="#E5E5E5")
    name_points(axis, {backbone: point for (backbone, _), point in reversed(points.items())})  # plain is first
    add_title(figure, dataset, _of_methods(colours, methods), plain=None in methods)
    return figure


def gain_by_frequency(dataset: str, rows: Sequence[ArmRow], runs: Runs, colours: Mapping[str, str]) -> Figure | None:
    """Gains over plain on slices of the test rows: each backbone a dot, and their mean with its 95 % interval."""
    on_data = [run for by_seed in runs.values() for run in by_seed.values() if run.arm.dataset == dataset]
    facts = next((run.slices for run in on_data if run.slices), None)
    rows = [row for row in rows if row.over_plain and not row.control]
    if not rows or not facts:
        return None
    methods, slices = list(dict.fromkeys(row.method for row in rows)), facts["slices"]
    gains: OnSlices = {}
    for position, (name, part) in enumerate(slices.items()):
        if part["rows"] >= FEWEST_ROWS:
            by_method = _gains_on_slice(rows, runs, facts["by"], name)
            gains |= {(position, method): of_method for method, of_method in by_method.items()}
    if not gains:
        return None
    figure, (axis,) = new_figure(FIGURE_WIDTH, 4.2)
    axis.axhline(0, color="black", linewidth=1)
    dots = [replace(gain, low=None, high=None) for _, single in gains.values() for gain in single]
    limits = limits_of([*(mean for mean, _ in gains.values()), *dots])
    for (position, method), (mean, single) in gains.items():
        place = position + 0.7 * ((methods.index(method) + 0.5) / len(methods) - 0.5)
        if len(single) > 1:
            spots = place + np.linspace(-0.06, 0.06, len(single))
            axis.plot(spots, [gain.mean for gain in single], "o", color=colours[method], markersize=3.5, alpha=0.4)
        draw_interval(axis, mean, place, limits, upright=True, color=colours[method], linewidth=2.5)
        axis.plot(place, mean.mean, "o", c=colours[method], mec="white", ms=7, zorder=3, alpha=alpha_of(mean))
    axis.set_ylim(limits)
    axis.set_ylabel("gain in test AUC over plain")
    axis.yaxis.set_major_formatter(GAINS)
    axis.set_xticks(range(len(slices)), [_slice_label(name, part) for name, part in slices.items()])
    axis.set_xlim(-0.5, len(slices) - 0.5)
    axis.tick_params(axis="x", length=0)
    axis.set_xlabel(f"how often the train split has the row's item ({facts['by']})", parse_math=False)
    axis.grid(axis="y", color="#E5E5E5")
    several, pale = len({row.backbone for row in rows}) > 1, any(mean.interval is None for mean, _ in gains.values())
    add_title(figure, dataset, _of_methods(colours, methods), dots=several, pale=pale)
    return figure


def _gains_on_slice(rows: Sequence[ArmRow], runs: Runs, by: str, name: str) -> dict[str, MeanAndEach]:
    def aucs(by_seed: Mapping[int, RunResult]) -> dict[int, float]:
        sliced = {seed: run.slices for seed, run in by_seed.items() if run.slices and run.slices["by"] == by}
        values = {seed: facts["slices"].get(name, {}).get("AUC") for seed, facts in sliced.items()}
        return {seed: value for seed, value in values.items() if value is not None}

    gains = {}
    for method in dict.fromkeys(row.method for row in rows if row.method):
        single = [(row, mean_gain([row], runs, aucs)) for row in rows if row.method == method]
        if mean := mean_gain([row for row, gain in single if gain], runs, aucs):
            gains[method] = mean, [gain for _, gain in single if gain]
    return gains


def _together(rows: Sequence[ArmRow], results: Iterable[RunResult]) -> list[ArmRow]:
    """Rows of a further backbone that stands for all, where there are several."""
    return [
        ArmRow(line.dataset, TOGETHER, line.arm, line.method, line.control, line.gain.seeds, over_plain=line.gain)
        for line in over_backbones(rows, results)
        if line.gain and len(line.backbones) > 1
    ]


def _of_methods(colours: Mapping[str, str], methods: Iterable[str | None]) -> dict[str, str]:
    return {method: colour for method, colour in colours.items() if method in methods}


def _cost(row: ArmRow) -> float | None:
    return total(row.seconds.get(kind) for kind in ("train", "language_model"))


def _slice_label(name: str, facts: Mapping[str, Any]) -> str:
    bounds = " to ".join(f"{count:,}" for count in dict.fromkeys(facts["train_rows"] or ()))
    few = "\n(too few to draw)" if facts["rows"] < FEWEST_ROWS else ""
    return f"{name}\n{bounds or 'none'} in train\n{facts['rows']:,} test rows{few}"


def _draw_bands(axis: Axes, backbones: Sequence[str]) -> None:
    for index in range(0, len(backbones), 2):
        axis.axhspan(index - 0.5, index + 0.5, color=BAND, zorder=0, linewidth=0)
    if backbones[-1] == TOGETHER:
        axis.axhline(len(backbones) - 1.5, color=GREY, linewidth=0.8)
    axis.axvline(0, color="black", linewidth=1)
    axis.grid(axis="x", color="#DDDDDD")
    axis.spines["left"].set_visible(False)
    axis.tick_params(axis="y", length=0)
