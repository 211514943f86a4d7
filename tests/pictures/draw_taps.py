"""Draws `taps.png`, the picture in README.md: `python tests/pictures/draw_taps.py [FILE.png]`.

The arrows are those of `fuxictr_llm.enhancement.TAPS`: a tap that the picture does not know is an error.
"""

import sys
from itertools import pairwise
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from fuxictr_llm.enhancement import TAPS

FILE = Path(__file__).with_name("taps.png")
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#666666"  # Okabe and Ito's, safe for colour-blind readers
WIDTH, HEIGHT = 12.0, 4.9  # inches; the coordinates are the same

# What flows through the model: x of the middle, width, first and second line; a tap sits under what it sees.
FLOW = {
    "inputs": (0.95, 1.3, "batch", "columns"),
    "embeddings": (2.95, 1.7, "embeddings", "[B, F, D]"),
    "backbone": (5.0, 1.5, "backbone", "any FuxiCTR model"),
    "representation": (7.15, 1.9, "representation", "[B, R]"),
    "logit": (9.2, 1.3, "logit", "[B, T]"),
    "loss": (11.05, 1.3, "loss", "in training alone"),
}
# What a method is shown at a tap, and what it may give back.
SHOWN = {
    "inputs": ("reads", ""),
    "embeddings": ("reads", ""),
    "representation": ("reads", "may replace"),
    "logit": ("reads", "adds a term"),
    "loss": ("reads", "adds a term"),
}
MODEL_Y, METHOD_Y, BELOW_Y = 4.05, 1.95, 0.55


def picture() -> Figure:
    """The model above, the method below it, between them the taps; at the bottom what is made before and kept after.

    Raises:
        ValueError: a tap is not in the picture.
    """
    if missing := set(TAPS) ^ set(SHOWN):
        raise ValueError(f"the picture and enhancement.TAPS differ in {', '.join(sorted(missing))}")
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=110)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    axis.axis("off")
    _draw_model(axis)
    _box(axis, 6.0, METHOD_Y, 11.4, 0.62, ORANGE, "a method (LLaCTR, ELEC, LLMEmb, yours): one Enhancement")
    for tap, (reads, gives) in SHOWN.items():
        _draw_tap(axis, FLOW[tap][0], tap, reads, gives)
    _box(axis, 2.6, BELOW_Y, 4.6, 0.78, GREY, "language model", "asked before training; its vectors are stored")
    _arrow(axis, (2.6, BELOW_Y + 0.39), (2.6, METHOD_Y - 0.31), GREY)
    _box(axis, 8.9, BELOW_Y, 5.6, 0.78, BLUE, "served", "the backbone, and what the method folds into constants")
    _arrow(axis, (8.9, METHOD_Y - 0.31), (8.9, BELOW_Y + 0.39), BLUE)
    return figure


def _draw_model(axis: Axes) -> None:
    """The boxes from batch to loss, and the arrows from each to the next."""
    boxes = list(FLOW.values())
    for name, (x, width, title, below) in FLOW.items():
        _box(axis, x, MODEL_Y, width, 0.95, BLUE if name != "loss" else GREY, title, below)
    for (x, width, *_), (next_x, next_width, *_) in pairwise(boxes):
        _arrow(axis, (x + width / 2, MODEL_Y), (next_x - next_width / 2, MODEL_Y), "black")


def _draw_tap(axis: Axes, x: float, tap: str, reads: str, gives: str) -> None:
    """An arrow down for what the method reads, one up where it may give something back."""
    top, bottom = MODEL_Y - 0.475, METHOD_Y + 0.31
    middle = (top + bottom) / 2
    down = x - 0.12 if gives else x
    _arrow(axis, (down, top), (down, bottom), ORANGE)
    axis.text(down - 0.09, middle, reads, ha="right", va="center", fontsize=9, color=ORANGE)
    if gives:
        _arrow(axis, (x + 0.12, bottom), (x + 0.12, top), ORANGE)
        axis.text(x + 0.21, middle, gives.replace(" ", "\n", 1), ha="left", va="center", fontsize=9, color=ORANGE)


def _box(axis: Axes, x: float, y: float, width: float, height: float, colour: str, title: str, below: str = "") -> None:
    """A box around its middle, with one or two lines."""
    corner = (x - width / 2, y - height / 2)
    style = "round,pad=0,rounding_size=0.08"
    shape = FancyBboxPatch(corner, width, height, boxstyle=style, facecolor="white", edgecolor=colour, linewidth=1.6)
    axis.add_patch(shape)
    rise = 0.15 if below else 0
    axis.text(x, y + rise, title, ha="center", va="center", fontsize=12, fontweight="bold", color=colour)
    if below:
        axis.text(x, y - 0.17, below, ha="center", va="center", fontsize=9.5, color="black")


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    style = {"arrowstyle": "-|>", "color": colour, "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0}
    axis.annotate("", xy=end, xytext=start, arrowprops=style)


if __name__ == "__main__":
    picture().savefig(sys.argv[1] if len(sys.argv) > 1 else FILE, format="png", metadata={"Software": None})
