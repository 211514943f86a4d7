"""All plots of a leaderboard."""

from collections.abc import Iterable, Sequence

from matplotlib.figure import Figure

from fuxictr_llm.leaderboard.report.evidence import ArmRow
from fuxictr_llm.leaderboard.report.gain_by_cost import gain_by_cost
from fuxictr_llm.leaderboard.report.overall import over_backbones, runs_by_row
from fuxictr_llm.leaderboard.report.plots import (
    auc_by_cost,
    colours_of,
    gain_by_backbone,
    gain_by_frequency,
    together,
)
from fuxictr_llm.leaderboard.run.results import RunResult


def figures(rows: Sequence[ArmRow], results: Iterable[RunResult]) -> dict[str, Figure]:
    """`gain_by_cost_<all data sets>`, and `gain_`, `cost_` and `frequency_<data set>`, as far as there are any.

    Args:
        rows: from `summarize`.
        results: the finished runs that the rows are of.
    """
    results = list(results)
    runs, colours, overall = runs_by_row(results), colours_of(rows), over_backbones(rows, results)
    datasets = dict.fromkeys(row.dataset for row in rows)
    drawn: dict[str, Figure | None] = {f"gain_by_cost_{'-'.join(datasets)}": gain_by_cost(rows, overall, colours)}
    for dataset in datasets:
        on_data = [row for row in rows if row.dataset == dataset]
        lines = together(line for line in overall if line.dataset == dataset)
        drawn[f"gain_{dataset}"] = gain_by_backbone(dataset, [*on_data, *lines], colours)
        drawn[f"cost_{dataset}"] = auc_by_cost(dataset, on_data, colours)
        drawn[f"frequency_{dataset}"] = gain_by_frequency(dataset, on_data, runs, colours)
    return {name: figure for name, figure in drawn.items() if figure is not None}
