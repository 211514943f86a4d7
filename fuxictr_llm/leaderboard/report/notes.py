"""How to read a leaderboard's page."""

from collections.abc import Iterable, Mapping, Sequence

from fuxictr_llm.leaderboard.report import LEVEL
from fuxictr_llm.leaderboard.report.costs import how_served
from fuxictr_llm.leaderboard.report.evidence import ArmRow
from fuxictr_llm.leaderboard.report.overall import Overall
from fuxictr_llm.leaderboard.report.power import POWER, could_show, pilot_of, pilots_of_rows
from fuxictr_llm.leaderboard.report.users import OverUsers
from fuxictr_llm.leaderboard.report.verdicts import FEWEST_SEEDS, PLACEBO, PROVEN, UNPROVEN, WORSE
from fuxictr_llm.leaderboard.run.results import RunResult

PERCENT = f"{LEVEL * 100:.0f} %"


def notes_on(
    rows: Sequence[ArmRow],
    results: Iterable[RunResult],
    overall: Sequence[Overall],
    users: Mapping[str, OverUsers],
    *,
    tuned: bool = False,
) -> list[str]:
    """The notes on a table: warnings first, then what it could have shown.

    Args:
        tuned: the settings of the arms were searched.
    """
    results = list(results)
    splits = any(run.split for run in results)
    unit = "split" if splits else "seed"
    on_test = dict.fromkeys(run.arm.dataset for run in results if _is_validated_on_test(run))
    shown = _could_have_shown(rows, overall)
    most = max((len(row.over_plain.differences) for row in rows if row.over_plain and row.is_method), default=0)
    return [
        *(
            f"{name}: validation is the test split, so the epoch was chosen on test: its AUCs are too good, and no "
            "verdict on them is worth much."
            for name in on_test
        ),
        *([_OF_TUNING] if tuned and any(map(_has_rows_of_the_search, results)) else []),
        *([f"{few_seeds(most, unit)}."] if 0 < most < FEWEST_SEEDS else []),
        *shown,
        *_same_as_a_control(overall),
        *(f"{name}: intervals over test users: {of.words}." for name, of in users.items()),
        "AUC, gAUC and logloss are of the test split, mean ± standard deviation over the seeds; the epoch was chosen "
        "on validation. Of several tasks they are the mean.",
        "A gain is the mean difference in test AUC at common seeds, with the two-sided 95 % interval of the paired t "
        "test, not corrected. " + (_OF_SPLITS if splits else _OF_SEEDS),
        f"{PROVEN}: better than plain and than every control, at {FEWEST_SEEDS} {unit}s or more. That is an "
        "intersection-union test: its p is the largest of the one-sided p of its comparisons, of which none is "
        f"corrected for the others. {PLACEBO}: better than plain, but not surely than a control. {WORSE}: than plain. "
        f"{UNPROVEN}: everything else.",
        "Over all backbones: the differences are averaged over the backbones at each seed, then tested. Each method's "
        f"verdict is one test at {PERCENT}, and the table's primary result.",
        "Rows are secondary: p (Holm) is that of the row's intersection-union test after Holm's correction over the "
        "rows of its data set. p is one-sided, of a single comparison, not corrected: in a method's row with plain, "
        "in a control's row of the method with the control.",
        *([_OF_RECOVERY] if any("gain" in (run.record.get("networks") or {}) for run in results) else []),
        *([_OF_USERS] if any(of.intervals for of in users.values()) else []),
        *([_OF_POWER.format(unit=unit)] if shown else []),
        "relative AUC is AUC / AUC of plain - 1; RelaImpr is (AUC - 0.5) / (AUC of plain - 0.5) - 1.",
        "Seconds are medians over the seeds. Those of the language model were spent once, for all seeds and backbones, "
        "and so were those of a gain network, for the arms that share it. Inference "
        "is the time of a test row as a multiple of plain's. Runs side by side slow each other down: times are rough.",
        *([_OF_COSTS] if any(row.is_method for row in rows) else []),
        *([_OF_SERVING.format(way=way)] if (way := how_served(rows)) else []),
    ]


_OF_TUNING = (
    "The settings were searched on the data set's own split, in which test rows of these further splits were train or "
    "validation rows: the AUCs of all arms lean upwards."
)
_OF_RECOVERY = (
    "The recovery is (student - plain) / (gain network - plain), of the means, where the gain network is surely better "
    "than plain: the 95 % interval of its gain is above 0."
)
_OF_USERS = (
    "by test users: the 95 % interval of a bootstrap over test users (all rows of a user together), with the runs as "
    "they are: in a method's line of its gain over plain, in a control's of the method over the control."
)
_OF_COSTS = (
    "gain over placebo: over the control that ran and leaves the method the least gain. Tokens are those that the "
    "language model read (in tuning: in every epoch, measurements included) and wrote, spent once like its seconds."
)
_OF_SERVING = (
    "What is served is the exported network, with the vectors that it looks up by id and without a language model; "
    "latency is that of the fastest of some such batches: {way}, from ids to probabilities."
)
_OF_POWER = (
    "could show: the smallest gain over plain and over each control that these {unit}s would have proven with "
    f"{POWER:.0%} power, by the spread of their differences; in a row it is after Holm's correction."
)
_OF_SEEDS = (
    "With one common seed there is no interval. Seeds vary the training, not the data: these intervals and the "
    "verdicts hold for this test split."
)
_OF_SPLITS = (
    "Each split's difference is the mean over its seeds, and the test is over the splits, corrected for the train rows "
    "that they share (Nadeau and Bengio 2003): intervals and verdicts cover the data's sample, too."
)


def _could_have_shown(rows: Sequence[ArmRow], overall: Sequence[Overall]) -> list[str]:
    """Of each data set, the smallest gains that its table could have shown."""
    notes = []
    for dataset in dict.fromkeys(row.dataset for row in rows):
        lines = [line for line in overall if line.dataset == dataset and line.claim]
        pilots = [pilot_of(line.claim, LEVEL) for line in lines if len(line.backbones) > 1]
        gains = {
            "over all backbones": could_show(pilots),
            "on a single backbone": could_show(
                pilots_of_rows([row for row in rows if row.dataset == dataset]).values()
            ),
        }
        if words := ", ".join(f"{of} AUC {where}" for where, of in gains.items() if of):
            notes.append(f"{dataset}: the smallest gain that this table could have shown ({POWER:.0%} power): {words}.")
    return notes


def _same_as_a_control(overall: Sequence[Overall]) -> list[str]:
    """Where a method's runs equal those of a control, digit for digit."""
    same: dict[tuple[str, str], list[str]] = {}
    for line in overall:
        gain = line.over_control
        if line.control and gain and gain.differences and not any(gain.differences.values()):
            same.setdefault((line.dataset, line.method), []).append(line.control)
    return [
        f"{dataset}: the runs of {method} equal those of its control {' and of '.join(controls)}, digit for digit: "
        "what the control takes away changed nothing."
        for (dataset, method), controls in same.items()
    ]


def few_seeds(count: int, unit: str = "seed") -> str:
    """What cannot be shown with less seeds than a verdict needs."""
    return f"With {count} {unit}{'s' if count > 1 else ''} nothing can be proven: a verdict needs {FEWEST_SEEDS}"


def _has_rows_of_the_search(run: RunResult) -> bool:
    """Whether test rows of its split were train or validation rows of the data set's own split."""
    resplit = run.record.get("config", {}).get("resplit") or {}
    is_own = (
        resplit.get("by") == "time" and resplit["number"] == resplit["of"]
    )  # the last rolling one has its test rows
    return bool(resplit) and not is_own


def _is_validated_on_test(run: RunResult) -> bool:
    digests = (run.record.get("data") or {}).get("sha256")
    return isinstance(digests, Mapping) and "test" in digests and digests.get("valid") == digests["test"]
