"""Our runs of a board's rows beside the published figures: reproduced, better, worse, or why there is no run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table

from fuxictr_llm import registry
from fuxictr_llm.common.errors import UserError, unknown
from fuxictr_llm.common.files import explain_write_errors, replacing
from fuxictr_llm.common.formats import escaped, list_of, table_of
from fuxictr_llm.config.resolve import Experiment, load_experiment
from fuxictr_llm.config.sources import model_entry_names
from fuxictr_llm.data.prepare import prepare_raw_data
from fuxictr_llm.leaderboard.boards.published import PublishedRow, read_board
from fuxictr_llm.leaderboard.plan.plan import Arm, Plan
from fuxictr_llm.leaderboard.run.results import OTHER_OUT, Results

AUC_TOLERANCE = 0.001  # AUC; the maintainers of BARS call a smaller difference reproduced
# The seeds of the rows that BARS ran five times; the first is that of most single runs.
BARS_SEEDS = (2021, 190034, 992817, 27011, 948432)
DEAD_ADD_LOSS = ((2, 0, 2), (2, 3, 3))  # the first and the last FuxiCTR whose fit never called a model's add_loss
NOT_RUN = "not run"
HEADER = ("model", "printed AUC", "published mean", "runs", "our AUC", "sd", "seeds", "difference", "verdict", "flags")
COLORS = {"reproduced": "green", "better": "cyan", "worse": "red", NOT_RUN: "dim"}
EXPLAINED = (
    "difference: the mean of our test AUCs minus the mean of the published runs (of one run: the printed value). "
    f"reproduced: by less than {AUC_TOLERANCE}, the tolerance of the maintainers of BARS."
)


@dataclass(frozen=True)
class Verified:
    """A row of a board and our runs of it.

    Attributes:
        reason: why we have no run of it; empty where there is one.
        auc, logloss, gauc: of our runs on test, by seed.
        data: whether the data files are the published ones, in words.
        flags: remarks that a reader should know.
    """

    row: PublishedRow
    reason: str = ""
    auc: Mapping[int, float] = field(default_factory=dict)
    logloss: Mapping[int, float] = field(default_factory=dict)
    gauc: Mapping[int, float] = field(default_factory=dict)
    data: str = ""
    flags: tuple[str, ...] = ()

    @property
    def mean(self) -> float | None:
        return fmean(self.auc.values()) if self.auc else None

    @property
    def sd(self) -> float | None:
        """Of the sample; None for less than two runs."""
        return stdev(self.auc.values()) if len(self.auc) > 1 else None

    @property
    def difference(self) -> float | None:
        """Our mean minus the published mean; where one run is published, minus the printed figure."""
        return None if self.mean is None else self.mean - self.row.expected_auc

    @property
    def verdict(self) -> str:
        """`reproduced`, `better`, `worse` or `not run`."""
        if self.difference is None:
            return NOT_RUN
        if abs(self.difference) < AUC_TOLERANCE:
            return "reproduced"
        return "better" if self.difference > 0 else "worse"


def verify(
    board: str,
    run: Callable[[Plan], Results],
    *,
    models: Sequence[str] = (),
    seeds: int | Sequence[int] = 1,
    config: str | None = None,
    zoo: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    gpu: int = -1,
) -> list[Verified]:
    """Run our rows of a board and compare.

    Args:
        run: runs what of a plan is not done yet.
        models: rows of the board by its names or ours; none: all.
        seeds: a number: each row's own seed first, as published, then those of `seeds_for`; or the seeds themselves.
        config: a config directory of ours; its rows and boards stand before the packaged ones.
        overrides: settings that win over the rows'; the comparison is then with other settings than the published.

    Raises:
        UserError: the board or a model is unknown, or its data is not here (it says where to get it).
    """
    rows = select(read_board(board, config), models)
    known = set(model_entry_names(Path(config) if config else None))
    own = {row.model: _experiment(row, known, config, gpu) for row in rows}
    plans = [
        Plan([arm_of_row(row) for row in group], chosen, config, zoo, overrides or {}, gpu)
        for chosen, group in _by_seeds([(row, own[row.model]) for row in rows], seeds)
    ]
    data = _data(plans[0].runs()[0].experiment.params) if plans else ""
    ours: dict[str, _OurRuns] = {}
    for plan in plans:
        ours |= _our_runs(plan, run(plan))
    changed = ("settings changed with --set",) if overrides else ()
    return [_verified(row, own[row.model], ours, data, changed) for row in rows]


def select(rows: Sequence[PublishedRow], models: Sequence[str]) -> list[PublishedRow]:
    """The rows of those models, by the board's names or ours; all where none is named.

    Raises:
        UserError: the board has no such model.
    """
    names = {row.model: row.model for row in rows} | {our_name(row): row.model for row in rows}
    for model in models:
        if model not in names:
            raise unknown("model", model, [row.model for row in rows], where=f"board {rows[0].board!r}")
    wanted = {names[model] for model in models} or set(names.values())
    return [row for row in rows if row.model in wanted]


def our_name(row: PublishedRow) -> str:
    """The row's model as our expids have it."""
    return row.our_expid.removesuffix(f"_{row.board}")


def arm_of_row(row: PublishedRow) -> Arm:
    """The arm that repeats a row."""
    backbone, _, method = our_name(row).rpartition("_")
    if backbone and method in registry.method_names():
        return Arm(backbone, row.board, method)
    return Arm(our_name(row), row.board)


def seeds_for(own: int, number: int) -> list[int]:
    """This number of seeds for a row: first its own, then the five of BARS, then those that follow its own."""
    return list(islice(dict.fromkeys(chain((own, *BARS_SEEDS), range(own + 1, own + number + 6))), number))


def flags_of(row: PublishedRow, params: Mapping[str, Any] | None, runs: int = 0) -> tuple[str, ...]:
    """Remarks on a row that a reader should know.

    Args:
        params: of our row, where there is one.
        runs: how many runs of ours there are.
    """
    flags = []
    if row.runs == 0:
        flags.append("published without a log")
    elif row.runs == 1:
        flags.append("published: one run")
    if runs == 1:
        flags.append("ours: one run")
    if params and params.get("test_data") and params.get("valid_data") == params["test_data"]:
        flags.append("validation is the test file")
    if params and row.fuxictr and _is_dead(row.fuxictr) and _has_add_loss(params["model"]):
        flags.append(f"FuxiCTR {row.fuxictr} never called its add_loss")
    return (*flags, *filter(None, [row.note]))


def _is_dead(version: str) -> bool:
    parts = version.split(".")
    return all(map(str.isdecimal, parts)) and DEAD_ADD_LOSS[0] <= tuple(map(int, parts)) <= DEAD_ADD_LOSS[1]


def _has_add_loss(backbone: str) -> bool:
    from fuxictr.pytorch.models import BaseModel

    return registry.find_backbone(backbone).add_loss is not BaseModel.add_loss


@dataclass
class _OurRuns:
    """The metrics of our runs of an arm, by name and seed, and why the others failed."""

    params: Mapping[str, Any]
    metrics: dict[str, dict[int, float]] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def _our_runs(plan: Plan, results: Results) -> dict[str, _OurRuns]:
    """Our runs of each arm, by the name that `our_name` gives its row."""
    ours = {_name(run.arm): _OurRuns(run.experiment.params) for run in plan.runs()}
    for result in results.finished():
        for metric, value in result.metrics["test"].items():
            ours[_name(result.arm)].metrics.setdefault(metric, {})[result.seed] = value
    for failure in results.failures():
        ours[_name(failure.arm)].failed.append(f"seed {failure.seed} failed: {failure.reason}")
    return ours


def _name(arm: Arm) -> str:
    return "_".join(filter(None, (arm.backbone, arm.method)))


def _experiment(row: PublishedRow, known: set[str], config: str | None, gpu: int) -> Experiment | str:
    """Our experiment with a row's settings, or why there is none."""
    if row.our_expid not in known:
        return "its published settings are not in model_config"
    try:
        return load_experiment(row.our_expid, config, gpu=gpu)
    except UserError as error:
        return str(error)


def _data(params: Mapping[str, Any]) -> str:
    """Whether the raw files, which must be there, are the published ones."""
    others = prepare_raw_data(params).get("not_published")
    if others:
        return f"others than published: {', '.join(others)}"
    digests = params.get("md5") or {}
    if not any(digests.values()):
        return "no md5 is published"
    without_digest = [name for name, digest in digests.items() if not digest]
    return "as published (md5)" + (f", but no md5 is known of {', '.join(without_digest)}" if without_digest else "")


def _by_seeds(
    rows: Iterable[tuple[PublishedRow, Experiment | str]], seeds: int | Sequence[int]
) -> list[tuple[list[int], list[PublishedRow]]]:
    """The rows that can run, grouped by their seeds."""
    groups: dict[tuple[int, ...], list[PublishedRow]] = {}
    for row, experiment in rows:
        if isinstance(experiment, Experiment):
            chosen = seeds_for(experiment.params["seed"], seeds) if isinstance(seeds, int) else seeds
            groups.setdefault(tuple(chosen), []).append(row)
    return [(list(chosen), group) for chosen, group in groups.items()]


def _verified(
    row: PublishedRow, own: Experiment | str, ours: Mapping[str, _OurRuns], data: str, changed: tuple[str, ...]
) -> Verified:
    if isinstance(own, str):
        return Verified(row, own, flags=flags_of(row, None))
    runs = ours[our_name(row)]
    auc, logloss, gauc = (runs.metrics.get(name, {}) for name in ("AUC", "logloss", "gAUC"))
    flags = (*flags_of(row, runs.params, len(auc)), *changed, *(runs.failed if auc else ()))
    reason = "" if auc else "; ".join(runs.failed) or "not finished"
    return Verified(row, reason, auc, logloss, gauc, data, flags)


def cells_of(row: Verified) -> list[str]:
    """The texts of a row's cells, in the order of `HEADER`."""
    published = row.row
    flags = "; ".join(filter(None, [row.reason, *row.flags]))
    spread = "" if published.auc_sd is None else f" ± {published.auc_sd:.6f}"
    return [
        published.model,
        f"{published.auc:g}",
        "" if published.auc_mean is None else f"{published.auc_mean:.6f}{spread}",
        str(published.runs),
        "" if row.mean is None else f"{row.mean:.6f}",
        "" if row.sd is None else f"{row.sd:.6f}",
        ", ".join(map(str, row.auc)),
        "" if row.difference is None else f"{row.difference:+.6f}",
        row.verdict,
        flags,
    ]


def comparison_on_screen(board: str, rows: Sequence[Verified]) -> Group:
    """A table that fits 80 columns, and below it each remark with the models it applies to."""
    table = Table(title=f"{board}: published and ours, test AUC", box=box.SIMPLE_HEAD, show_edge=False)
    for name in ("model", "published", "ours", "difference", "verdict"):
        table.add_column(name, justify="left" if name in ("model", "verdict") else "right")
    about: dict[str, list[str]] = {}
    for row in rows:
        ours = "" if row.mean is None else f"{row.mean:.5f}" + ("" if row.sd is None else f" ± {row.sd:.5f}")
        published = f"{row.row.expected_auc:.5f}" + ("" if row.row.auc_sd is None else f" ± {row.row.auc_sd:.5f}")
        difference = "" if row.difference is None else f"{row.difference:+.5f}"
        cells = (row.row.model, published, ours, difference, row.verdict)
        table.add_row(*map(escape, cells), style=COLORS[row.verdict])
        for remark in filter(None, [row.reason, *row.flags]):
            about.setdefault(remark, []).append(row.row.model)
    remarks = [
        f"{remark}: {'all' if len(models) == len(rows) else ', '.join(models)}" for remark, models in about.items()
    ]
    return Group(table, "", *map(escape, remarks), escape(EXPLAINED))


def comparison_page(board: str, rows: Sequence[Verified], facts: Sequence[str] = ()) -> str:
    """A page with the table and, above it, `facts`: what was run, and on which data."""
    parts = [
        f"# {escaped(board)}: ours and published",
        list_of([*facts, EXPLAINED]),
        table_of(HEADER, map(cells_of, rows)),
    ]
    return "\n\n".join(parts) + "\n"


def write_page(path: Path, text: str) -> None:
    """Write a page whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    with explain_write_errors(path, OTHER_OUT), replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
