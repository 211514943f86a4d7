"""Parts of a leaderboard's plots: axes, intervals, markers of arms, legends."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from fuxictr_llm.common.pictures import BLUE, DPI, GREY, ORANGE
from fuxictr_llm.leaderboard.report import PairedGain
from fuxictr_llm.leaderboard.report.evidence import PROVEN, ArmRow

COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito's
MARKERS_OF_CONTROLS = "sD^v<>"
PALE = 0.35
GAINS = FuncFormatter(lambda value, _: f"{value:+.6f}".rstrip("0") if abs(value) > 1e-9 else "0")


def colours_of(rows: Iterable[ArmRow]) -> dict[str, str]:
    """A colour for each method."""
    methods = dict.fromkeys(row.method for row in rows if row.method)
    return {method: COLOURS[index % len(COLOURS)] for index, method in enumerate(methods)}


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


def name_points(axis: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Names in a column to the left of the axes, moved apart, each with a thin line to its point."""
    low, high = axis.get_ylim()
    step = 0.055 * (high - low)
    names = sorted(points, key=lambda name: points[name][1])
    wanted = [points[name][1] for name in names]
    up, down = wanted[:], wanted[:]
    for index in range(1, len(names)):
        up[index] = max(up[index], up[index - 1] + step)
        down[-index - 1] = min(down[-index - 1], down[-index] - step)
    for name, place in zip(names, np.mean([up, down], axis=0), strict=True):  # as far apart as both, and between them
        axis.annotate(
            name,
            points[name],
            xytext=(-0.02, place),
            textcoords=axis.get_yaxis_transform(),
            fontsize=9,
            ha="right",
            va="center",
            annotation_clip=False,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4},
        )
