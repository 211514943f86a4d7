"""The course of a run's training in a picture: losses, the metrics on validation data, the learning rate."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fuxictr_llm.common.pictures import BLUE, DPI, GREY, ORANGE

AFFECTS_RESULTS = False  # see common/code_digest.py
GREEN = "#009E73"  # Okabe and Ito's


def training_curves(record: Mapping[str, Any]) -> Figure:
    """A panel each for the training loss, every monitored metric and, where it changes, the learning rate.

    Args:
        record: of a run, with `evaluations`, `best_epoch`, `config` and perhaps `evaluated_at`.
    """
    done = record["evaluations"]
    metrics = list(done[-1]["metrics"])
    rates = [one["learning_rate"] for one in done]
    count = 1 + len(metrics) + (len({*rates}) > 1)
    figure = Figure(figsize=(6.5, 1.1 + 1.75 * count), dpi=DPI, layout="constrained")
    axes = list(figure.subplots(count, 1, sharex=True, squeeze=False)[:, 0])
    figure.suptitle(_title(record), fontsize=12, parse_math=False)
    best = _best_number(record)
    for axis in axes:
        axis.grid(color="#E5E5E5")
        axis.spines[["top", "right"]].set_visible(False)
        if best is not None:
            axis.axvline(best, color=GREY, linestyle=":", linewidth=1, zorder=1)
    _draw_losses(axes[0], done)
    for axis, metric in zip(axes[1:], metrics, strict=False):
        _draw(axis, done, [one["metrics"].get(metric) for one in done], color=GREEN)
        axis.set_ylabel(f"validation\n{metric}", parse_math=False)
    if len({*rates}) > 1:
        _draw(axes[-1], done, rates, color=GREY)
        axes[-1].set_yscale("log")
        axes[-1].set_ylabel("learning rate")
    axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[-1].set_xlabel(_unit(record))
    if best is not None:
        above = {"xycoords": axes[0].get_xaxis_transform(), "ha": "center", "va": "bottom"}
        axes[0].annotate(f"best: {best}", (best, 1.02), fontsize=9, color=GREY, **above)
    return figure


def _draw_losses(axis: Axes, done: Sequence[Mapping[str, Any]]) -> None:
    """The loss that is trained, and of it the method's term, by an axis of its own: it may be far smaller."""
    _draw(axis, done, [one["train_loss"] for one in done], color=BLUE)
    axis.set_ylabel("training loss", color=BLUE)
    terms = [one.get("method_loss") for one in done]
    if any(term is not None for term in terms):
        beside = axis.twinx()
        beside.spines["top"].set_visible(False)
        _draw(beside, done, terms, color=ORANGE)
        beside.set_ylabel("the method's\nterm of it", color=ORANGE)


def _draw(axis: Axes, done: Sequence[Mapping[str, Any]], values: Sequence[float | None], color: str) -> None:
    points = [(one["number"], value) for one, value in zip(done, values, strict=True) if value is not None]
    axis.plot(*zip(*points, strict=True), color=color, marker="o", markersize=3.5, linewidth=1.4)


def _best_number(record: Mapping[str, Any]) -> int | None:
    """Which evaluation the kept weights are of; None where epochs have several, and the record has the epoch alone."""
    return None if record["config"].get("eval_steps") else record["best_epoch"]


def _title(record: Mapping[str, Any]) -> str:
    return f"{record['model_id']}, seed {record['seed']}"


def _unit(record: Mapping[str, Any]) -> str:
    steps, times = record["config"].get("eval_steps"), record.get("evaluated_at") or ()
    unit = f"evaluation, every {steps} steps" if steps else "epoch"
    each = f"; {times[-1] / len(times):.2g} s each, evaluation included" if times else ""
    return unit + each
