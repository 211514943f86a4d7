"""Plots of a leaderboard: gains by backbone, AUC against cost, gains by item frequency; one of each a data set.

A method has one colour in all of them, its controls the same, hollow. Colours are safe for colour-blind readers.
"""

import io
import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from fuxictr_llm.leaderboard.evidence import PROVEN, Gain, Row
from fuxictr_llm.leaderboard.overall import mean_gain, runs_by_row
from fuxictr_llm.leaderboard.results import RunResult
from fuxictr_llm.pictures import BLUE, DPI, GREY, ORANGE

COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's
OF_CONTROLS = "sD^v<>"
FEWEST_ROWS = 100  # of a slice: the AUC of fewer rows is noise that would set the scale of all
WIDTH = 7.5
BAND = "#F3F3F3"


def figures(rows: Sequence[Row], results: Iterable[RunResult]) -> dict[str, Figure]:
    """`gain_`, `cost_` and `frequency_<data set>`, each where there is something to draw.

    Args:
        rows: from `summarize`.
        results: that went in there.
    """
    runs, found = runs_by_row(results), {}
    colours = {
        method: COLOURS[i % len(COLOURS)] for i, method in enumerate(dict.fromkeys(r.method for r in rows if r.method))
    }
    for dataset in dict.fromkeys(row.dataset for row in rows):
        of_data = [row for row in rows if row.dataset == dataset]
        drawn = {
            "gain": gain_by_backbone(dataset, of_data, colours),
            "cost": auc_by_cost(dataset, of_data, colours),
            "frequency": gain_by_frequency(dataset, of_data, runs, colours),
        }
        found |= {f"{name}_{dataset}": figure for name, figure in drawn.items() if figure is not None}
    return found


def png_of(figure: Figure) -> bytes:
    """The content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, format="png", bbox_inches="tight", pad_inches=0.15)
    return content.getvalue()


def gain_by_backbone(dataset: str, rows: Sequence[Row], colours: Mapping[str, str]) -> Figure | None:
    """Gains over plain with their 95 % intervals, a band a backbone; None without any."""
    rows = [row for row in rows if row.over_plain]
    if not rows:
        return None
    backbones = list(dict.fromkeys(row.backbone for row in rows))
    places, ticks, y = [], [], 0.0
    for index, backbone in enumerate(backbones):
        count = sum(row.backbone == backbone for row in rows)
        places += [y + line for line in range(count)]
        ticks.append((y - 0.9, y + count - 0.1, index))
        y += count + 0.8
    figure, axis = _figure(dataset, "gain in test AUC over the plain backbone, 95 % interval", 1.3 + 0.17 * y)
    for low, high, index in ticks:
        if index % 2 == 0:
            axis.axhspan(low, high, color=BAND, zorder=0)
    axis.axvline(0, color="black", linewidth=1)
    gains = [row.over_plain for row in rows]
    low, high = _limits(gains)
    controls = _markers(rows)
    for row, gain, place in zip(rows, gains, places, strict=True):
        look = _look(row, colours, controls)
        _interval(axis, gain, place, (low, high), colours[row.method], 1.0 if row.control else 2.0)
        axis.plot(gain.mean, place, linestyle="", zorder=3, **look)
    axis.set_xlim(low, high)
    axis.set_ylim(y - 0.8, -0.95)
    axis.set_yticks([(low + high) / 2 for low, high, _ in ticks], backbones, parse_math=False)
    axis.tick_params(axis="y", length=0)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.4f}" if value else "0"))
    axis.locator_params(axis="x", nbins=6)
    axis.grid(axis="x", color="#DDDDDD", zorder=0)
    axis.set_axisbelow(True)
    _legend(axis, rows, colours, controls, proven=any(row.verdict == PROVEN for row in rows))
    return figure


def auc_by_cost(dataset: str, rows: Sequence[Row], colours: Mapping[str, str]) -> Figure | None:
    """Mean test AUC against seconds of training and of the language model; a line joins a backbone to its methods."""
    cost = {id(row): sum(row.seconds.get(stage, 0) for stage in ("train", "language_model")) for row in rows}
    rows = [row for row in rows if not row.control and "AUC" in row.test and cost[id(row)] > 0]
    if not rows:
        return None
    figure, axis = _figure(dataset, "seconds of training and of the language model (log scale)", 4.6)
    axis.set_xscale("log")
    for row in rows:
        plain = next((of for of in rows if of.backbone == row.backbone and not of.method), None)
        x, y, colour = cost[id(row)], row.test["AUC"].mean, colours.get(row.method, GREY)
        if plain and row.method:
            axis.plot([cost[id(plain)], x], [plain.test["AUC"].mean, y], color=colour, linewidth=0.8, alpha=0.45)
        axis.plot(x, y, marker="o", markersize=7, color=colour, markeredgecolor="white", linestyle="", zorder=3)
    x = [cost[id(row)] for row in rows]
    axis.set_xlim(min(x) / 1.5, max(x) * 1.5)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_ylabel("mean test AUC")
    axis.grid(color="#E5E5E5")
    axis.set_axisbelow(True)
    first = {row.backbone: row for row in reversed(rows)}  # plain, where it is there
    _name_at_the_side(axis, {name: (cost[id(row)], row.test["AUC"].mean) for name, row in first.items()})
    _legend(axis, rows, colours, {}, plain=any(not row.method for row in rows))
    return figure


def gain_by_frequency(
    dataset: str, rows: Sequence[Row], runs: Mapping[tuple[str, str, str], Mapping[int, RunResult]],
    colours: Mapping[str, str],
) -> Figure | None:  # fmt: skip
    """Gains over plain on the slices of the test rows: of each backbone a dot, and their mean with its 95 % interval."""
    facts = next(
        (run.slices for of in runs.values() for run in of.values() if run.slices and run.arm.dataset == dataset), None
    )
    rows = [row for row in rows if row.over_plain and not row.control]
    if not rows or not facts:
        return None
    methods = list(dict.fromkeys(row.method for row in rows))
    gains = {}
    for position, (name, of) in enumerate(facts["slices"].items()):
        if of["rows"] >= FEWEST_ROWS:
            gains |= _gains_on_slice(rows, runs, name, methods, position)
    if not gains:
        return None
    figure, axis = _figure(dataset, f"how often the train split has the row's item ({facts['by']})", 4.2)
    axis.axhline(0, color="black", linewidth=1)
    low, high = _limits([gain for mean, single in gains.values() for gain in (mean, *single)])
    for (position, method), (mean, single) in gains.items():
        place = position + 0.7 * ((methods.index(method) + 0.5) / len(methods) - 0.5)
        colour = colours[method]
        if len(single) > 1:
            spots = place + np.linspace(-0.06, 0.06, len(single))
            axis.plot(spots, [gain.mean for gain in single], "o", color=colour, markersize=3.5, alpha=0.4)
        _interval(axis, mean, place, (low, high), colour, 2.0, upright=True)
        axis.plot(place, mean.mean, "o", color=colour, markersize=8, markeredgecolor="white", zorder=3)
    axis.set_ylim(low, high)
    names = [_told_slice(name, of) for name, of in facts["slices"].items()]
    axis.set_xticks(range(len(names)), names)
    axis.set_xlim(-0.5, len(names) - 0.5)
    axis.tick_params(axis="x", length=0)
    axis.set_ylabel("gain in test AUC over plain")
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+.4f}" if value else "0"))
    axis.grid(axis="y", color="#E5E5E5")
    axis.set_axisbelow(True)
    _legend(axis, rows, colours, {}, dots=len({row.backbone for row in rows}) > 1)
    return figure


Slice = dict[tuple[int, str], tuple[Gain, list[Gain]]]


def _gains_on_slice(
    rows: Sequence[Row], runs: Mapping[tuple[str, str, str], Mapping[int, RunResult]], name: str,
    methods: Iterable[str], position: int,
) -> Slice:  # fmt: skip
    """(position, method) -> the gain averaged over backbones, and that of each."""

    def aucs(of: Mapping[int, RunResult]) -> dict[int, float]:
        found = {seed: (run.slices or {}).get("slices", {}).get(name, {}).get("AUC") for seed, run in of.items()}
        return {seed: value for seed, value in found.items() if value is not None}

    found: Slice = {}
    for method in methods:
        single = {row.backbone: (row, mean_gain([row], runs, aucs)) for row in rows if row.method == method}
        there = [row for row, gain in single.values() if gain]
        if mean := mean_gain(there, runs, aucs):
            found[position, method] = mean, [gain for _, gain in single.values() if gain]
    return found


def _told_slice(name: str, facts: Mapping) -> str:
    bounds = "" if facts["train_rows"] is None else "–".join(f"{of:,}" for of in dict.fromkeys(facts["train_rows"]))
    few = "\n(too few to draw)" if facts["rows"] < FEWEST_ROWS else ""
    return f"{name}\n{bounds} in train\n{facts['rows']:,} test rows{few}"


def _figure(dataset: str, label: str, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    figure.suptitle(dataset, fontsize=13, parse_math=False)
    axis = figure.subplots()
    axis.set_xlabel(label, parse_math=False)
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _limits(gains: Iterable[Gain]) -> tuple[float, float]:
    """Of the axis of gains: every mean is in it, and of the intervals those that are not far wider than most."""
    gains = list(gains)
    means = [gain.mean for gain in gains]
    halves = [gain.high - gain.mean for gain in gains if gain.high is not None] or [0.0]
    reach = max(1.5 * float(np.median(halves)), 0.5 * max(map(abs, means)))
    low = min(0.0, *(max(gain.mean - reach, gain.mean if gain.low is None else gain.low) for gain in gains))
    high = max(0.0, *(min(gain.mean + reach, gain.mean if gain.high is None else gain.high) for gain in gains))
    margin = 0.06 * (high - low) or 1e-4
    return low - margin, high + margin


def _interval(
    axis: Axes, gain: Gain, place: float, limits: tuple[float, float], colour: str, width: float, upright: bool = False
) -> None:
    """A line; an arrow head where it goes on beyond the edge."""
    if gain.low is None:
        return
    low, high = max(gain.low, limits[0]), min(gain.high, limits[1])
    ends = [(place, place), (low, high)] if upright else [(low, high), (place, place)]
    axis.plot(*ends, color=colour, linewidth=width, solid_capstyle="butt", alpha=0.8, zorder=2)
    for edge, there, marker in ((low, gain.low, "v" if upright else "<"), (high, gain.high, "^" if upright else ">")):
        if edge != there:
            spot = (place, edge) if upright else (edge, place)
            axis.plot(*spot, marker=marker, markersize=5, color=colour, clip_on=False, zorder=2)


def _markers(rows: Iterable[Row]) -> dict[str, str]:
    names = dict.fromkeys(row.control for row in rows if row.control)
    return {name: OF_CONTROLS[i % len(OF_CONTROLS)] for i, name in enumerate(names)}


def _look(row: Row, colours: Mapping[str, str], controls: Mapping[str, str]) -> dict:
    colour = colours[row.method]
    if row.control:
        return {"marker": controls[row.control], "markersize": 5, "color": colour, "markerfacecolor": "white"}
    rim = {"markeredgecolor": "black", "markeredgewidth": 1.6} if row.verdict == PROVEN else {"markeredgecolor": colour}
    return {"marker": "o", "markersize": 7, "color": colour, **rim}


def _legend(
    axis: Axes, rows: Sequence[Row], colours: Mapping[str, str], controls: Mapping[str, str], *,
    plain: bool = False, proven: bool = False, dots: bool = False,
) -> None:  # fmt: skip
    """Above the axes."""

    def handle(name: str, colour: str, marker: str = "o", **more: object) -> Line2D:
        return Line2D([], [], linestyle="", label=name, color=colour, marker=marker, **more)

    handles = [handle("plain", GREY)] if plain else []
    handles += [handle(name, colours[name]) for name in dict.fromkeys(row.method for row in rows if row.method)]
    handles += [handle(f"control {name}", GREY, marker, markerfacecolor="white") for name, marker in controls.items()]
    if proven:
        handles.append(handle("proven", "white", markeredgecolor="black", markeredgewidth=1.6))
    if dots:
        handles.append(handle("one backbone", GREY, markersize=3.5, alpha=0.6))
    legend = axis.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(0, 1.0), borderaxespad=0.2, frameon=False,
        ncols=min(len(handles), 4), fontsize=9, handletextpad=0.2, columnspacing=1.2,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def _name_at_the_side(axis: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Names in a column to the right of the axes, moved apart, each with a thin line to its point."""
    low, high = axis.get_ylim()
    names = sorted(points, key=lambda name: points[name][1])
    step = max((high - low) * 0.055, 0.0)
    places: list[float] = []
    for name in names:
        places.append(max(points[name][1], places[-1] + step if places else -math.inf))
    excess = max(0.0, places[-1] - high)
    for index in range(len(places) - 1, -1, -1):  # pushes the highest back into the axes, and what is below them on
        top = high if index == len(places) - 1 else places[index + 1] - step
        places[index] = min(places[index], top) if excess else places[index]
    for name, place in zip(names, places, strict=True):
        axis.annotate(
            name, points[name], xytext=(1.03, place), textcoords=axis.get_yaxis_transform(), fontsize=9, va="center",
            annotation_clip=False, parse_math=False,
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.5, "shrinkA": 1, "shrinkB": 4},
        )  # fmt: skip
