"""The content of a leaderboard's page as texts and rounded numbers; tables.py writes it in each format."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from scipy.stats import t

from fuxictr_llm.leaderboard.report import LEVEL, PairedGain, Spread
from fuxictr_llm.leaderboard.report.evidence import (
    FEWEST_SEEDS,
    PLACEBO,
    PROVEN,
    UNPROVEN,
    WORSE,
    ArmRow,
    Overall,
    comparisons,
    over_backbones,
)
from fuxictr_llm.leaderboard.report.teachers import HEADS, lines_of_teachers
from fuxictr_llm.leaderboard.run.results import Failure, RunResult

NOTHING = "-"
WORD_COLUMNS = ("backbone", "arm", "seeds", "verdict", "verdicts")  # columns of words; the others hold numbers


class Line(NamedTuple):
    """A line of a table: its cells, among them the verdict; its `kind` (plain, method, control); what it belongs to."""

    cells: list[str]
    verdict: str = ""
    kind: str = "method"
    group: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a report in texts."""

    title: str
    heads: list[str]
    lines: list[Line]


@dataclass(frozen=True)
class Report:
    """The content of a leaderboard's page.

    Attributes:
        tables: for each data set one of its rows; before it, where there are several backbones, one over all of them.
        troubles: a line for each run that failed, and for each arm with seeds that have not run.
        notes: how to read the tables.
        facts: how they were made: name -> text.
        digests: a line for each arm: its runs' keys by seed.
    """

    tables: list[Table]
    troubles: list[str]
    notes: list[str]
    facts: dict[str, str]
    digests: list[str]


def make_report(
    rows: Sequence[ArmRow],
    results: Sequence[RunResult] = (),
    failures: Iterable[Failure] = (),
    facts: Mapping[str, str] | None = None,
) -> Report:
    """The report of a table's rows.

    Args:
        rows: from `summarize`.
        results, failures: the runs that the rows are of.
        facts: the command, the plan's digest and what else the reader should know; the date, versions and the data's
            digests are added.
    """
    tables, overall = [], over_backbones(rows, results)
    for dataset in dict.fromkeys(row.dataset for row in rows):
        lines = [line for line in overall if line.dataset == dataset]
        if any(len(line.backbones) > 1 for line in lines):
            tables.append(_table_over_backbones(dataset, lines))
        tables.append(_table_of_rows(dataset, [row for row in rows if row.dataset == dataset]))
        if lines_of_nets := lines_of_teachers(dataset, results):
            tables.append(Table(f"{dataset}, gain networks", [*HEADS], [Line(cells) for cells in lines_of_nets]))
    digests = []
    for name, runs in _by_arm(results).items():
        digests.append(f"{name}: " + ", ".join(f"seed {run.seed} {run.key[:12]}" for run in runs))
    return Report(tables, _troubles(rows, failures), _notes(rows, results), _facts(results, facts or {}), digests)


def _table_of_rows(dataset: str, rows: Sequence[ArmRow]) -> Table:
    columns = _columns(rows)
    lines = [Line([cell(row) for cell in columns.values()], row.verdict, kind_of(row), row.backbone) for row in rows]
    return Table(dataset, list(columns), lines)


def _columns(rows: Sequence[ArmRow]) -> dict[str, Callable[[ArmRow], str]]:
    """Head of a column -> the cell of a row; without columns in which all cells would be empty."""
    methods = {(row.backbone, row.method): row for row in rows if kind_of(row) == "method"}

    def over_control(row: ArmRow) -> PairedGain | None:
        method = methods.get((row.backbone, row.method))
        return method.over_controls.get(row.control) if method and row.control else None

    def corrected(row: ArmRow) -> str:
        gain = over_control(row) if row.control else row.over_plain
        return p_cell(gain.corrected) if gain else NOTHING

    columns: dict[str, Callable[[ArmRow], str]] = {
        "backbone": lambda row: row.backbone,
        "arm": lambda row: row.arm,
        "AUC": lambda row: spread_cell(row.test.get("AUC")),
        "validation AUC": lambda row: spread_cell(row.valid.get("AUC")),
        "gain over plain [95 %]": lambda row: gain_cell(row.over_plain),
        "verdict": lambda row: ": ".join(filter(None, (row.verdict, row.why))) or NOTHING,
        "method over control [95 %]": lambda row: gain_cell(over_control(row)),
        "p (Holm)": corrected,
        "relative AUC": lambda row: share_cell(row.over_plain.relative if row.over_plain else None),
        "RelaImpr": lambda row: share_cell(row.over_plain.rela_impr if row.over_plain else None),
        "gAUC": lambda row: spread_cell(row.test.get("gAUC")),
        "logloss": lambda row: spread_cell(row.test.get("logloss")),
        "seeds": seeds_cell,
        "training s": lambda row: seconds_cell(row.seconds.get("train")),
        "language model s": lambda row: seconds_cell(row.seconds.get("language_model")),
        "parameters": lambda row: parameters_cell(row.parameters),
        "inference": lambda row: NOTHING if row.inference_ratio is None else f"{row.inference_ratio:.2f}x",
    }
    if any("AUC" in row.test for row in rows):
        del columns["validation AUC"]
    needed = {"AUC", *WORD_COLUMNS}
    return {head: cell for head, cell in columns.items() if head in needed or any(cell(row) != NOTHING for row in rows)}


def _table_over_backbones(dataset: str, overall: Sequence[Overall]) -> Table:
    heads = ["arm", "backbones", "better on", "mean gain over plain [95 %]", "method over control [95 %]", "verdicts"]
    lines = []
    for arm in overall:
        verdicts = ", ".join(f"{count} {verdict}" for verdict, count in arm.verdicts.items() if count) or NOTHING
        gains = gain_cell(arm.gain), gain_cell(arm.over_control)
        cells = [arm.arm, str(len(arm.backbones)), str(arm.better), *gains, verdicts]
        lines.append(Line(cells, "", "control" if arm.control else "method", arm.method))
    return Table(f"{dataset}, over all backbones", heads, lines)


def kind_of(row: ArmRow) -> str:
    """plain, method or control."""
    return "control" if row.control else "method" if row.method else "plain"


def seeds_cell(row: ArmRow) -> str:
    planned = len(row.seeds) + len(row.failed) + len(row.missing)
    if planned == len(row.seeds):
        return str(planned)
    not_done = [f"{len(seeds)} {what}" for what, seeds in (("failed", row.failed), ("not run", row.missing)) if seeds]
    return f"{len(row.seeds)} of {planned} ({', '.join(not_done)})"


def spread_cell(spread: Spread | None) -> str:
    if spread is None:
        return NOTHING
    return f"{spread.mean:.5f}" + ("" if spread.sd is None else f" ± {spread.sd:.5f}")


def gain_cell(gain: PairedGain | None) -> str:
    if gain is None:
        return NOTHING
    return f"{gain.mean:+.5f}" + (" [{:+.5f}, {:+.5f}]".format(*gain.interval) if gain.interval else "")


def p_cell(p: float | None) -> str:
    return NOTHING if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def share_cell(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share:+.2f} %"


def seconds_cell(seconds: float | None) -> str:
    return NOTHING if seconds is None else f"{seconds:,.0f}" if seconds >= 9.95 or seconds == 0 else f"{seconds:.1f}"


def parameters_cell(parameters: Mapping[str, int]) -> str:
    if not parameters:
        return NOTHING
    method = parameters.get("method", 0)
    return f"{parameters.get('backbone', 0):,}" + (f" + {method:,}" if method else "")


def _by_arm(results: Iterable[RunResult]) -> dict[str, list[RunResult]]:
    arms: dict[str, list[RunResult]] = {}
    for run in sorted(results, key=lambda run: run.seed):
        arms.setdefault(f"{run.arm.dataset} {run.arm.backbone} {run.arm.label}", []).append(run)
    return arms


def _troubles(rows: Iterable[ArmRow], failures: Iterable[Failure]) -> list[str]:
    reasons = {(run.arm.dataset, run.arm.backbone, run.arm.label, run.seed): run.reason for run in failures}
    lines = []
    for row in rows:
        name = f"{row.dataset} {row.backbone} {row.arm}"
        for seed in row.failed:
            reason = " ".join(reasons.get((row.dataset, row.backbone, row.arm, seed), "reason unknown").split())
            lines.append(f"{name}, seed {seed}: failed: {reason}")
        if row.missing:
            lines.append(f"{name}: not run at seed {', '.join(map(str, row.missing))}")
    return lines


def _notes(rows: Sequence[ArmRow], results: Iterable[RunResult]) -> list[str]:
    family = comparisons(rows)
    needed = ""
    if family:
        count = Counter(len(gain.seeds) for gain in family).most_common(1)[0][0]
        errors = t.isf(LEVEL / 2 / len(family), count - 1)
        needed = f" With {count} seeds, the surest of them must be {errors:.1f} standard errors from zero."
    on_test = dict.fromkeys(run.arm.dataset for run in results if _is_validated_on_test(run))
    return [
        *(
            f"{name}: validation is the test split, so the epoch was chosen on test: its AUCs are too good, and no "
            "verdict on them is worth much."
            for name in on_test
        ),
        "AUC, gAUC and logloss are of the test split, mean ± standard deviation over the seeds; the epoch was chosen "
        "on validation. Of several tasks they are the mean.",
        "A gain is the mean difference in test AUC at common seeds, with the 95 % interval of the paired t test, not "
        "corrected. With one common seed there is no interval. Seeds vary the training, not the data: intervals and "
        "verdicts hold for this test split, and do not tell how a gain would vary on another one.",
        f"p is two-sided, of the paired t test, after Holm's correction over the {len(family)} comparisons that "
        "decide a verdict: each method with plain, and with each of its controls. It stands in the method's row for "
        f"method against plain, in the control's row for method against control.{needed}",
        f"{PROVEN}: better than plain and than every control, at {LEVEL * 100:.0f} %, over {FEWEST_SEEDS} seeds or "
        f"more. {PLACEBO}: better than plain, but not surely than a control. {WORSE}: than plain. {UNPROVEN}: "
        "everything else; few seeds prove little.",
        "Over all backbones: the AUC is averaged over the backbones at each seed, and then compared as above. This "
        "sees smaller gains than the single rows do; its interval is not corrected, and no verdict rests on it.",
        "relative AUC is AUC / AUC of plain - 1; RelaImpr is (AUC - 0.5) / (AUC of plain - 0.5) - 1.",
        "Seconds are medians over the seeds. Those of the language model were spent once, for all seeds and backbones, "
        "and so were those of a gain network, for the arms that share it. Inference "
        "is the time of a test row as a multiple of plain's. Runs side by side slow each other down: times are rough.",
    ]


def _is_validated_on_test(run: RunResult) -> bool:
    digests = (run.record.get("data") or {}).get("sha256")
    return isinstance(digests, Mapping) and "test" in digests and digests.get("valid") == digests["test"]


def _facts(results: Sequence[RunResult], facts: Mapping[str, str]) -> dict[str, str]:
    texts = {**facts, "date": facts.get("date") or f"{datetime.now():%Y-%m-%d %H:%M}"}
    versions: dict[str, dict[str, None]] = {}
    data: dict[str, dict[str, None]] = {}
    for run in results:
        for package, version in (run.record.get("versions") or {}).items():
            versions.setdefault(package, {})[version] = None
        data.setdefault(run.arm.dataset, {})[_digests_text((run.record.get("data") or {}).get("sha256"))] = None
    texts["versions"] = ", ".join(f"{package} {' and '.join(several)}" for package, several in versions.items())
    texts |= {f"data {dataset} (sha256)": " or ".join(several) for dataset, several in data.items()}
    return {name: " ".join(str(text).split()) for name, text in texts.items() if text}


def _digests_text(digests: object) -> str:
    if not isinstance(digests, Mapping):
        return str(digests or "unknown")
    lists = {split: [files] if isinstance(files, str) else map(str, files) for split, files in digests.items()}
    return ", ".join(f"{split} {' '.join(files)}" for split, files in lists.items())
