"""The plot of gains against what the language model took: a panel a data set, a point a method over all backbones."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from fuxictr_llm.common.pictures import DPI, GREY
from fuxictr_llm.leaderboard.report import PairedGain
from fuxictr_llm.leaderboard.report.evidence import ArmRow
from fuxictr_llm.leaderboard.report.overall import Overall
from fuxictr_llm.leaderboard.report.plots import (
    GAINS,
    add_title,
    draw_interval,
    limits_of,
    marker_look,
    markers_of,
)

WIDTH, HEIGHT, LEGEND = 6.2, 3.7, 0.8  # inches, of a panel, and of the legend
APART = 0.06  # of the methods' range: the least distance of two
TICKS = (1, 2, 5)
FREE = "none"  # where no language model is asked


@dataclass(frozen=True)
class _Point:
    """A method or a control on a data set: its gain over all backbones, that on each, and where it stands."""

    row: ArmRow
    gain: PairedGain
    each: list[float]
    seconds: float


def gain_by_cost(rows: Sequence[ArmRow], overall: Iterable[Overall], colours: Mapping[str, str]) -> Figure | None:
    """Gains over plain against the language model's seconds; None where no method has both.

    A big point is the gain averaged over the backbones with its 95 % interval, a dot that on one of them, a hollow
    marker a control's. Points of nearly the same cost are moved apart; marks on the axis are at the exact costs.

    Args:
        rows: from `summarize`.
        overall: from `over_backbones`.
        colours: of the methods.
    """
    points = [point for line in overall if (point := _point(line, rows))]
    datasets = [name for name in dict.fromkeys(point.row.dataset for point in points) if _has_method(points, name)]
    if not datasets:
        return None
    columns = min(len(datasets), 2)
    lines = -(-len(datasets) // columns)
    figure = Figure(figsize=(WIDTH * columns + 0.4, HEIGHT * lines + LEGEND), dpi=DPI, layout="constrained")
    axes = list(figure.subplots(lines, columns, squeeze=False).flat)
    controls = markers_of(point.row for point in points)
    for axis, dataset in zip(axes, datasets, strict=False):
        _draw(axis, [point for point in points if point.row.dataset == dataset], colours, controls)
        axis.set_title(dataset if len(datasets) > 1 else "", fontsize=11, parse_math=False)
    for axis in axes[len(datasets) :]:
        axis.set_axis_off()
    figure.supxlabel("seconds of the language model (log scale), spent once for all backbones and seeds", fontsize=10)
    figure.supylabel("gain in test AUC over plain", fontsize=10)
    drawn = {point.row.method for point in points}
    shown = {method: colour for method, colour in colours.items() if method in drawn}
    several, pale = any(len(point.each) > 1 for point in points), any(point.gain.interval is None for point in points)
    proven = any(point.row.verdict for point in points)
    title = datasets[0] if len(datasets) == 1 else ""
    add_title(figure, title, shown, controls, plain=True, dots=several, pale=pale, proven=proven)
    return figure


def _point(line: Overall, rows: Iterable[ArmRow]) -> _Point | None:
    own = [row for row in rows if (row.dataset, row.arm) == (line.dataset, line.arm) and row.over_plain]
    seconds = [row.seconds["language_model"] for row in own if "language_model" in row.seconds]
    if line.gain is None or not seconds:
        return None
    each = [row.over_plain.mean for row in own if row.over_plain]
    row = ArmRow(line.dataset, "", line.arm, line.method, line.control, line.gain.seeds)
    return _Point(row, line.gain, each, median(seconds))


def _has_method(points: Iterable[_Point], dataset: str) -> bool:
    return any(point.row.dataset == dataset and not point.row.control for point in points)


def _draw(axis: Axes, points: Sequence[_Point], colours: Mapping[str, str], controls: Mapping[str, str]) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_axisbelow(True)
    axis.grid(axis="y", color="#E5E5E5")
    axis.axhline(0, color="black", linewidth=1)
    methods = [point for point in points if not point.row.control]
    dots = [replace(point.gain, mean=mean, low=None, high=None) for point in methods for mean in point.each]
    limits = limits_of([*(point.gain for point in points), *dots])
    places, gap = _places(axis, methods)
    for point in methods:
        if point.seconds > 0:
            (mark,) = axis.plot(np.log10(point.seconds), 0, "|", color=colours[str(point.row.method)], clip_on=False)
            mark.set(transform=axis.get_xaxis_transform(), markersize=10, markeredgewidth=1.6)
    nth: dict[str, int] = {}
    for point in points:
        method = str(point.row.method)
        if method not in places:  # a control whose method has not run
            continue
        place, colour = places[method], colours[method]
        if point.row.control:
            nth[method] = nth.get(method, 0) + 1
            place += 0.4 * gap * nth[method]
        elif len(point.each) > 1:
            axis.plot([place - 0.35 * gap] * len(point.each), point.each, "o", color=colour, markersize=3.5, alpha=0.5)
        width = 1.0 if point.row.control else 2.0
        draw_interval(axis, point.gain, place, limits, upright=True, color=colour, linewidth=width)
        look = marker_look(point.row, point.gain, colour, controls)
        axis.plot(place, point.gain.mean, linestyle="", zorder=3, **look)
    axis.set_ylim(limits)
    axis.yaxis.set_major_formatter(GAINS)


def _places(axis: Axes, methods: Sequence[_Point]) -> tuple[dict[str, float], float]:
    """Where the methods stand on the axis, whose ticks are set; and the least distance between two.

    The axis counts in powers of ten. To its left, apart from it, is what asks no language model: the plain backbone.
    """
    asked = sorted((point for point in methods if point.seconds > 0), key=lambda point: point.seconds)
    exact = np.log10([point.seconds for point in asked]) if asked else np.zeros(1)
    span = max(float(exact[-1] - exact[0]), 0.6)
    gap = APART * span
    order = gap * np.arange(len(exact))
    moved = isotonic_regression(exact - order).x + order  # as near as they can be, so far apart
    places = {str(point.row.method): float(place) for point, place in zip(asked, moved, strict=False)}
    left, right = min(float(moved[0]), float(exact[0])) - 2 * gap, max(float(moved[-1]), float(exact[-1])) + 2 * gap
    free = [str(point.row.method) for point in methods if point.seconds == 0]
    origin = left - 2 * gap - gap * len(free)
    axis.plot(origin, 0, "o", color=GREY, markeredgecolor="white", markersize=7, zorder=3)
    places |= {method: origin + gap * number for number, method in enumerate(free, start=1)}
    axis.axvline(left, color=GREY, linewidth=0.8, linestyle=":")
    decades = range(int(np.floor(left)), int(np.ceil(right)) + 1)
    ticks = [np.log10(part * 10.0**power) for power in decades for part in TICKS]
    ticks = [tick for tick in ticks if left <= tick <= right]
    labels = [f"{10**tick:,.6g}" for tick in ticks]
    axis.set_xticks([origin + gap * len(free) / 2, *ticks], [FREE, *labels])
    axis.set_xlim(origin - 2 * gap, right)
    return places, gap
