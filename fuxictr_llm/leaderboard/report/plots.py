"""Plots of a data set: gains by backbone, AUC against cost, gains by item frequency; and what all plots share.

A method has one colour in all of them, its controls the same, hollow. Colours are safe for colour-blind readers.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from fuxictr_llm import registry
from fuxictr_llm.common.pictures import DPI, GREY, name_points
from fuxictr_llm.common.runs import total
from fuxictr_llm.leaderboard.report import PairedGain, Repeat
from fuxictr_llm.leaderboard.report.evidence import ArmRow
from fuxictr_llm.leaderboard.report.overall import Overall, Runs, mean_gain
from fuxictr_llm.leaderboard.report.verdicts import PROVEN
from fuxictr_llm.leaderboard.run.results import RunResult

FEWEST_ROWS = 100  # of a slice: the AUC of fewer rows is noise that would set the scale of all
FIGURE_WIDTH = 7.5
BAND = "#F3F3F3"
TOGETHER = "all together"  # the band of the gains averaged over backbones
MeanAndEach = tuple[PairedGain, list[PairedGain]]  # the gain averaged over backbones, and that of each
OnSlices = dict[tuple[int, str], MeanAndEach]  # by the position of the slice and the method
COLOURS = ("#332288", "#882255", "#999933", "#44AA99")  # of methods without one of their own: Tol's
MARKERS_OF_CONTROLS = "sD^v<>"
PALE = 0.35
GAINS = FuncFormatter(lambda value, _: f"{value:+.6f}".rstrip("0") if abs(value) > 1e-9 else "0")


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
    for axis in axes:
        axis.tick_params(axis="x", labelsize=8.5)  # the outermost ones of two columns stand side by side
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
    def aucs(by_seed: Mapping[Repeat, RunResult]) -> dict[Repeat, float]:
        sliced = {seed: run.slices for seed, run in by_seed.items() if run.slices and run.slices["by"] == by}
        values = {seed: facts["slices"].get(name, {}).get("AUC") for seed, facts in sliced.items()}
        return {seed: value for seed, value in values.items() if value is not None}

    gains = {}
    for method in dict.fromkeys(row.method for row in rows if row.method):
        single = [(row, mean_gain([row], runs, aucs)) for row in rows if row.method == method]
        if mean := mean_gain([row for row, gain in single if gain], runs, aucs):
            gains[method] = mean, [gain for _, gain in single if gain]
    return gains


def together(lines: Iterable[Overall]) -> list[ArmRow]:
    """Rows of a further backbone that stands for all, where there are several."""
    return [
        replace(
            ArmRow(line.dataset, TOGETHER, line.arm, line.method, line.control, line.gain.seeds, over_plain=line.gain),
            verdict=line.verdict.kind if line.verdict else "",
        )
        for line in lines
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


def colours_of(rows: Iterable[ArmRow]) -> dict[str, str]:
    """A colour for each method, the same in all tables: that of its class, where it has one."""
    methods = dict.fromkeys(row.method for row in rows if row.method)
    known = {*registry.method_names()}
    own = {method: registry.find_method(method).model_cls.colour for method in methods if method in known}
    others = sorted(method for method in methods if not own.get(method))
    return {method: own.get(method) or COLOURS[others.index(method) % len(COLOURS)] for method in methods}


def markers_of(rows: Iterable[ArmRow]) -> dict[str, str]:
    """A marker for each control."""
    names = dict.fromkeys(row.control for row in rows if row.control)
    return {name: MARKERS_OF_CONTROLS[index % len(MARKERS_OF_CONTROLS)] for index, name in enumerate(names)}


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with axes side by side that have the same limits."""
    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    axes = list(figure.subplots(1, columns, sharex=True, sharey=True, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_axisbelow(True)
    return figure, axes


def limits_of(gains: Iterable[PairedGain]) -> tuple[float, float]:
    """The limits of an axis of gains: all means fit, and the intervals except those that are far wider than most."""
    gains = list(gains)
    ends = [(gain.mean, *(gain.interval or (gain.mean, gain.mean))) for gain in gains]
    halves = [high - mean for mean, low, high in ends if high > low] or [0.0]
    reach = max(1.5 * float(np.median(halves)), 0.5 * max(abs(gain.mean) for gain in gains))
    low = min(0.0, *(max(mean - reach, low) for mean, low, _ in ends))
    high = max(0.0, *(min(mean + reach, high) for mean, _, high in ends))
    margin = 0.06 * (high - low) or 1e-4
    return low - margin, high + margin


def draw_interval(
    axis: Axes, gain: PairedGain, place: float, limits: tuple[float, float], upright: bool = False, **look: Any
) -> None:
    """A line at `place`; an arrow head where it goes on beyond the edge."""
    if gain.interval is None:
        return
    low, high = max(gain.interval[0], limits[0]), min(gain.interval[1], limits[1])
    ends = [(place, place), (low, high)] if upright else [(low, high), (place, place)]
    axis.plot(*ends, solid_capstyle="butt", alpha=0.8, zorder=2, **look)
    heads = "v^" if upright else "<>"
    for edge, end, head in zip((low, high), gain.interval, heads, strict=True):
        if edge != end:
            spot = (place, edge) if upright else (edge, place)
            axis.plot(*spot, marker=head, markersize=5, color=look["color"], clip_on=False, zorder=2)


def alpha_of(gain: PairedGain) -> float | None:
    """Pale where there is no interval: the point must not look like one whose interval is too narrow to be seen."""
    return PALE if gain.interval is None else None


def marker_look(row: ArmRow, gain: PairedGain, colour: str, controls: Mapping[str, str]) -> dict[str, Any]:
    """An arm's marker: controls are hollow, what is proven has a black rim, what has no interval is pale."""
    look = {"color": colour, "alpha": alpha_of(gain)}
    if row.control:
        return {**look, "marker": controls[row.control], "markersize": 5, "markerfacecolor": "white"}
    rim = {"markeredgecolor": "black", "markeredgewidth": 1.6} if row.verdict == PROVEN else {}
    return {**look, "marker": "o", "markersize": 7, **rim}


def add_title(
    figure: Figure,
    title: str,
    colours: Mapping[str, str],
    controls: Mapping[str, str] | None = None,
    *,
    plain: bool = False,
    proven: bool = False,
    dots: bool = False,
    pale: bool = False,
) -> None:
    """Above the axes: the title, and the legend of colours and markers."""

    def handle(name: str, colour: str, marker: str = "o", **more: Any) -> Line2D:
        return Line2D([], [], linestyle="", label=name, color=colour, marker=marker, **more)

    handles = [handle("plain", GREY)] if plain else []
    handles += [handle(name, colour) for name, colour in colours.items()]
    hollow = {"markerfacecolor": "white", "markersize": 5}
    handles += [handle(f"control: {name}", GREY, marker, **hollow) for name, marker in (controls or {}).items()]
    if proven:
        handles.append(handle("proven", GREY, markeredgecolor="black", markeredgewidth=1.6))
    if pale:
        handles.append(handle("no interval", GREY, alpha=PALE))
    if dots:
        handles.append(handle("one backbone", GREY, markersize=3.5, alpha=0.6))
    # The legend's own title: a title of the figure would lie beneath the legend.
    look = {"loc": "outside upper center", "frameon": False, "fontsize": 9, "ncols": max(1, min(len(handles), 5))}
    legend = figure.legend(
        handles=handles, handletextpad=0.2, columnspacing=1.2, title=title, title_fontsize=13, **look
    )
    for text in (*legend.get_texts(), legend.get_title()):
        text.set_parse_math(False)
