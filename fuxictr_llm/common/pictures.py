"""Figures: K x K heat maps of fields, the curves of a tuning, and what other figures share.

Figures are matplotlib's own objects, without pyplot's state. Colours are safe for colour-blind readers.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fuxictr_llm.common.files import replacing

AFFECTS_RESULTS = False  # see common/code_digest.py

DPI = 150
PNG: dict[str, Any] = {"format": "png", "bbox_inches": "tight", "pad_inches": 0.15}
LONGEST_NAME = 18
MOST_NAMES = 60
MOST_FIELDS_WITH_NUMBERS = 12
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # Okabe and Ito's


@dataclass(frozen=True)
class Panel:
    """One K x K matrix of a figure.

    Attributes:
        scale: the label of its scale.
        signed: whether colours must diverge from zero.
        reach: colours go from -reach to reach, whatever the values are, so that figures can be compared.
    """

    title: str
    matrix: np.ndarray
    scale: str
    signed: bool = False
    reach: float | None = None


def heat_maps(title: str, panels: Sequence[Panel], fields: Sequence[str], *, same_scale: bool = True) -> Figure:
    """K x K matrices of fields side by side.

    The diagonal says nothing about pairs and does not affect the colours, unless there is a single field. Colours
    diverge from zero where there are negative values or a panel is `signed` or has a `reach`.

    Args:
        title: of the figure.
        panels: the matrices `[K, K]`.
        fields: the K names.
        same_scale: equal colours mean equal values in all panels.
    """
    side = float(np.clip(1.6 + 0.19 * len(fields), 3.0, 9.5))
    size = float(np.clip(11 - 0.11 * len(fields), 6, 9.5))
    names = [_short(name) for name in fields]
    of_names = max(map(len, names)) * size * 0.62 / 72  # inches
    bars = 1 if same_scale else len(panels)
    width, height = len(panels) * (side + 0.15) + of_names + 1.3 * bars, side + of_names + 1.3
    figure = Figure(figsize=(width, height), dpi=DPI, layout="compressed")
    axes = list(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0])
    shown = [_without_diagonal(panel.matrix) for panel in panels]
    for axis, panel, matrix in zip(axes, panels, shown, strict=True):
        norm, colours = _colours(shown if same_scale else [matrix], panel.signed, panel.reach)
        axis.set_facecolor("#BBBBBB")
        image = axis.imshow(matrix, norm=norm, cmap=colours, aspect="equal", interpolation="nearest")
        axis.set_title(panel.title, fontsize=11)
        _name_fields(axis, names, size)
        if len(fields) <= MOST_FIELDS_WITH_NUMBERS:
            _write_numbers(axis, matrix, image.to_rgba(matrix))
        if not same_scale or axis is axes[-1]:
            beside = axes if same_scale else axis
            figure.colorbar(image, ax=beside, shrink=0.85, pad=0.02).set_label(panel.scale)
    axes[0].set_ylabel("field")
    figure.suptitle(title, fontsize=13)
    return figure


def tuning_curves(
    title: str, losses: Sequence[Sequence[float]], accuracies: Sequence[Sequence[float]], chance: float
) -> Figure:
    """The loss by step, and below it how often the language model names the right field.

    Args:
        title: of the figure.
        losses: [step, loss] pairs.
        accuracies: [step, share] pairs, step 0 being before tuning; without any, there is one panel.
        chance: the share that guessing would reach.
    """
    count = bool(losses) + bool(accuracies)
    figure = Figure(figsize=(7.0, 2.1 + 2.1 * count), dpi=DPI, layout="constrained")
    axes = list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])
    figure.suptitle(title, fontsize=13)
    axes[-1].set_xlabel("step of tuning")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    for axis in axes:
        axis.grid(color="#E5E5E5")
        axis.spines[["top", "right"]].set_visible(False)
    if losses:
        axes[0].plot(*np.array(losses, dtype=float).T, color=BLUE, marker="o", markersize=3.5)
        axes[0].set_ylabel("loss")
    if accuracies:
        _draw_accuracies(axes[-1], np.array(accuracies, dtype=float), chance)
    return figure


def save_figures(figures: Mapping[str, Figure], files: Path) -> list[Path]:
    """Write each figure as `<files>.<name>.png`, whole or not at all; returns the paths."""
    paths = [files.with_name(f"{files.name}.{name}.png") for name in figures]
    for path, figure in zip(paths, figures.values(), strict=True):
        with replacing(path) as temporary:
            figure.savefig(temporary, **PNG)
    return paths


def png_of(figure: Figure) -> bytes:
    """The content of a PNG file."""
    content = io.BytesIO()
    figure.savefig(content, **PNG)
    return content.getvalue()


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


def _without_diagonal(matrix: np.ndarray) -> np.ndarray:
    matrix = np.array(matrix, dtype=float)
    if len(matrix) > 1:
        np.fill_diagonal(matrix, np.nan)
    return matrix


def _colours(matrices: Sequence[np.ndarray], signed: bool, reach: float | None) -> tuple[Normalize, str]:
    """Scale and colour map of all matrices: diverging around zero, or from the lowest to the highest value."""
    if reach is not None:
        return CenteredNorm(0, halfrange=reach), "RdBu_r"
    lowest, highest = min(map(np.nanmin, matrices)), max(map(np.nanmax, matrices))
    if signed or lowest < 0:
        return CenteredNorm(0, halfrange=max(abs(lowest), abs(highest)) or 1.0), "RdBu_r"
    if highest - lowest < 1e-3:  # one field, or one-hot fields: nothing to stretch the colours over
        lowest, highest = 0.0, max(highest, 1.0)
    return Normalize(lowest, highest), "viridis"


def _name_fields(axis: Axes, names: Sequence[str], size: float) -> None:
    """Field names on both axes; with too many fields, every n-th name."""
    step = -(-len(names) // MOST_NAMES)
    for ticks in (axis.set_xticks, axis.set_yticks):
        ticks(range(0, len(names), step), names[::step], fontsize=size, parse_math=False)
    axis.tick_params(length=0 if step == 1 else 2, pad=2)
    axis.tick_params(axis="x", rotation=90)
    axis.set_xlabel("field" if step == 1 else f"field (one in {step} is named)")


def _short(name: str) -> str:
    """A long name is cut in its middle: beginning and end distinguish it from others."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 8]}…{name[-7:]}"


def _write_numbers(axis: Axes, matrix: np.ndarray, colours: np.ndarray) -> None:
    size = float(np.clip(10 - 0.35 * len(matrix), 5.5, 9))
    digits = 2 if np.nanmax(np.abs(matrix)) < 9.995 else 1
    for (row, column), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            brightness = colours[row, column, :3] @ (0.299, 0.587, 0.114)
            ink = "black" if brightness > 0.5 else "white"
            axis.text(column, row, f"{value:.{digits}f}", ha="center", va="center", color=ink, fontsize=size)


def _draw_accuracies(axis: Axes, accuracies: np.ndarray, chance: float) -> None:
    axis.plot(*accuracies.T, color=ORANGE, marker="o", markersize=4)
    axis.set_ylabel("field named rightly\n(held-out values)")
    axis.set_ylim(0, 1.02)
    axis.yaxis.set_major_formatter(PercentFormatter(xmax=1))
    if accuracies[0, 0] == 0:
        axis.axhline(
            accuracies[0, 1], color=ORANGE, linestyle="--", linewidth=1, label=f"before {accuracies[0, 1]:.0%}"
        )
    axis.axhline(chance, color=GREY, linestyle=":", linewidth=1, label=f"guessing {chance:.0%}")
    # On a tie the later epoch is kept: its loss is lower.
    epochs = accuracies[accuracies[:, 0] > 0][::-1]
    if len(epochs):
        kept = epochs[epochs[:, 1].argmax()]
        axis.plot(*kept, color=ORANGE, marker="o", markersize=9, linestyle="", label=f"kept {kept[1]:.0%}")
    axis.legend(loc="lower left", bbox_to_anchor=(0, 0.99), borderaxespad=0, frameon=False, ncols=3, fontsize=9)
