"""Intervals of gains that cover the test sample: the bootstrap over test users, with all rows of a user together.

Rows of one user are no independent evidence (cluster bootstrap: Field and Welsh, "Bootstrapping clustered data",
Journal of the Royal Statistical Society B 69, 2007). In each sample every run of a data set has the same users, so that
differences are paired. The runs are as they are: how training varies is what the interval over the seeds says.

Shape symbols: `N` test rows, `U` users, `B` samples.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of, digest_of_file, read_json, write_json
from fuxictr_llm.common.run_files import run_files
from fuxictr_llm.data.field_words import read_field_config
from fuxictr_llm.data.raw import raw_files
from fuxictr_llm.experiment.predictions import PREDICTIONS, read_predictions
from fuxictr_llm.leaderboard.plan.plan import PLAIN
from fuxictr_llm.leaderboard.report import LEVEL
from fuxictr_llm.leaderboard.report.overall import Overall, Runs, runs_by_row
from fuxictr_llm.leaderboard.run.results import USERS_FILE, RunResult

SAMPLES, SEED = 1000, 2024
MOST_ROWS = 200_000  # of test: of more the AUC hardly varies, and hundreds of runs would take hours
MOST_CELLS = 2**21  # of an array of rows by samples, which stays in the cache
Interval = tuple[float, float]


class OverUsers(NamedTuple):
    """Of a data set: intervals by (arm, the other arm), and in words what they are over, or why there are none."""

    intervals: Mapping[tuple[str, str], Interval]
    words: str


NO_USERS = OverUsers({}, "")


class UsersOfRows(NamedTuple):
    """A number for the user of each test row, `[N]`, and in words what is sampled.

    `known` is False where a column of users is declared, but could not be read: each row then has its own number.
    """

    codes: np.ndarray
    words: str
    known: bool


class Kept(TypedDict):
    """What `users.json` has of a data set."""

    made_from: str
    column: str | None
    intervals: list[tuple[str, str, float, float]]
    words: str


KEPT = TypeAdapter(Kept)


def over_users(folder: Path, finished: Sequence[RunResult], lines: Sequence[Overall]) -> dict[str, OverUsers]:
    """The intervals of each data set: of the methods' and controls' gains over all backbones.

    They are kept in the folder's `users.json`, and taken from there as long as the runs, the test file and the column
    of users are the same. Those over rows whose users could not be read are not kept: the file may come back.

    Args:
        folder: of the leaderboard.
        lines: from `over_backbones`, of the finished runs.
    """
    runs, found = runs_by_row(finished), {}
    kept = read_json(folder / USERS_FILE)
    kept = kept if isinstance(kept, dict) else {}
    for dataset in dict.fromkeys(line.dataset for line in lines):
        pairs = _pairs([line for line in lines if line.dataset == dataset], runs)
        used = list({id(run): run for pair in pairs.values() for side in pair for run in side}.values())
        if not used:
            continue
        made_from = _made_from(pairs, used[0])
        if any(run.split for run in used):
            found[dataset] = OverUsers({}, "none: the splits cover the test sample")
        elif old := _still_true(kept.get(dataset), made_from, used[0].record["config"]):
            found[dataset] = OverUsers(
                {(ours, other): (low, high) for ours, other, low, high in old["intervals"]}, old["words"]
            )
        else:
            found[dataset], users = _intervals(folder, pairs, used)
            if users and users.known:
                listed = [(*pair, *interval) for pair, interval in found[dataset].intervals.items()]
                column = user_column(used[0].record["config"])
                kept[dataset] = Kept(made_from=made_from, column=column, intervals=listed, words=users.words)
                write_json(folder / USERS_FILE, kept)
    return found


Pair = tuple[list[RunResult], list[RunResult]]  # of two arms, the runs at the same backbones and seeds


def _pairs(lines: Iterable[Overall], runs: Runs) -> dict[tuple[str, str], Pair]:
    pairs: dict[tuple[str, str], Pair] = {}
    for line in lines:
        compared = {(line.arm, PLAIN): line.gain, (line.method, line.arm): line.over_control}
        for (ours, others), gain in compared.items():
            if gain is not None:
                places = [(line.dataset, name) for name in line.backbones]
                places = [place for place in places if (*place, ours) in runs and (*place, others) in runs]
                sides = [
                    [runs[*place, arm].get(seed) for place in places for seed in gain.seeds] for arm in (ours, others)
                ]
                ours_there, others_there = ([run for run in side if run] for side in sides)
                if len(ours_there) == len(others_there) == len(places) * len(gain.seeds):
                    pairs[ours, others] = ours_there, others_there
    return pairs


def _still_true(entry: Any, made_from: str, config: Mapping[str, Any]) -> Kept | None:
    """An entry of `users.json`, if it has its form and is of the same runs, test file and column of users."""
    try:
        old = KEPT.validate_python(entry)
    except ValidationError:  # not there, or of another version: it is made anew
        return None
    if old["made_from"] != made_from:
        return None
    try:
        return old if old["column"] == user_column(config) else None
    except UserError:  # an archive is read where its field config is not
        return old


def _made_from(pairs: Mapping[tuple[str, str], Pair], first: RunResult) -> str:
    """Digest of what the intervals depend on, except for the column of users, which the field config may name."""
    predictions = {
        f"{ours} {others}": [[(run.key, run.record.get("predictions_sha256")) for run in side] for side in pair]
        for (ours, others), pair in pairs.items()
    }
    return digest_of([predictions, first.record["data"]["sha256"].get("test"), SAMPLES, SEED])


def _intervals(
    folder: Path, pairs: Mapping[tuple[str, str], Pair], used: Sequence[RunResult]
) -> tuple[OverUsers, UsersOfRows | None]:
    """The intervals, and the users that they are over; None: there are no intervals."""
    paths = {id(run): _predictions_of(folder, run) for run in used}
    if lacking := sum(path is None for path in paths.values()):
        return OverUsers({}, f"none: {lacking} of {len(used)} runs have kept no predictions of the test rows"), None
    files = {key: path for key, path in paths.items() if path is not None}
    y_true, _ = read_predictions(next(iter(files.values())))
    if len(y_true) > MOST_ROWS:
        return OverUsers({}, f"none: the {len(y_true):,} test rows are more than {MOST_ROWS:,}"), None
    users = users_of_test(used[0].record["config"], used[0].record["data"]["sha256"].get("test"), len(y_true))
    sampled: dict[int, list[np.ndarray]] = {key: [] for key in files}
    for weights in samples(int(users.codes.max()) + 1, SAMPLES, SEED, rows=len(y_true)):
        for key, path in files.items():
            sampled[key].append(mean_aucs(*read_predictions(path), users.codes, weights))
    aucs = {key: np.concatenate(parts) for key, parts in sampled.items()}
    intervals = {}
    for pair, sides in pairs.items():
        ours, others = (np.mean([aucs[id(run)] for run in side], axis=0) for side in sides)
        low, high = np.nanquantile(ours - others, [LEVEL / 2, 1 - LEVEL / 2])
        intervals[pair] = (float(low), float(high))
    return OverUsers(intervals, users.words), users


def _predictions_of(folder: Path, run: RunResult) -> Path | None:
    """The file of a run's predictions of the test rows; None: it is not there, or is that of another run."""
    noted = run.record.get("predictions_sha256")
    files = run_files(folder / "runs" / run.record["config"]["dataset_id"], str(run.record.get("model_id")))
    path = Path(f"{files}{PREDICTIONS}")
    return path if noted and path.is_file() and digest_of_file(path) == noted else None


def users_of_test(config: Mapping[str, Any], digests: Sequence[str] | None, rows: int) -> UsersOfRows:
    """The users of the test rows; without a column of them each row is one.

    Args:
        config: of a run: `cluster_by`, else the id of the field config's entity `user`, names the column.
        digests: of the raw test files that the run used.
        rows: how many there are.
    """
    each = np.arange(rows)
    try:
        column = user_column(config)
        if not column:
            return UsersOfRows(each, f"{rows:,} test rows (no column of users: cluster_by names one)", True)
        paths = raw_files(str(config.get("test_data")), config["data_format"])
        if [digest_of_file(path) for path in paths] != list(digests or ()):
            return UsersOfRows(each, f"{rows:,} test rows (the file of their users has changed)", False)
        parts = [_scan(path, config).select(pl.col(column).cast(pl.String)).collect() for path in paths]
        values = pl.concat(parts)[column]
    except (UserError, OSError, pl.exceptions.PolarsError):
        return UsersOfRows(each, f"{rows:,} test rows (their users could not be read)", False)
    if len(values) != rows:
        return UsersOfRows(each, f"{rows:,} test rows (the file of their users has {len(values):,})", False)
    codes = values.fill_null("").cast(pl.Categorical).to_physical().rank("dense").to_numpy().astype(np.int64) - 1
    return UsersOfRows(codes, f"{int(codes.max()) + 1:,} test users ({column})", True)


def user_column(config: Mapping[str, Any]) -> str | None:
    """The column of users that a run's settings name; None: they name none.

    Raises:
        UserError: the field config cannot be read.
    """
    if config.get("cluster_by"):
        return str(config["cluster_by"])
    entities = read_field_config(config.get("field_config")).get("entities") or {}
    return (entities.get("user") or {}).get("id")


def _scan(path: Path, config: Mapping[str, Any]) -> pl.LazyFrame:
    if config["data_format"] == "parquet":
        return pl.scan_parquet(path)
    return pl.scan_csv(path, separator=config.get("sep") or ",", infer_schema=False)


def samples(users: int, count: int, seed: int, rows: int = 0) -> Iterator[np.ndarray]:
    """How often each user was drawn, float32 `[U, b]`: together `count` samples of `users` draws with replacement.

    Args:
        rows: of these, times b, there are at most MOST_CELLS in a part.
    """
    draw = np.random.default_rng(seed)
    at_once = max(1, MOST_CELLS // max(rows, users))
    for start in range(0, count, at_once):
        columns = min(at_once, count - start)
        drawn = draw.integers(0, users, (columns, users)) + users * np.arange(columns)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=columns * users).reshape(columns, users)
        yield np.ascontiguousarray(counts.T, dtype=np.float32)


def mean_aucs(y_true: np.ndarray, y_pred: np.ndarray, users: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """As `aucs`; of several tasks, `[N, T]`, the mean."""
    columns = zip(np.atleast_2d(y_true.T), np.atleast_2d(y_pred.T), strict=True)
    return np.mean([aucs(true, predicted, users, weights) for true, predicted in columns], axis=0)


def aucs(y_true: np.ndarray, y_pred: np.ndarray, users: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The AUC of each weighting of the rows: a row has its user's weight. The rows are sorted once for all.

    Args:
        y_true, y_pred: labels (positive above 0.5) and scores, `[N]`.
        users: `[N]`.
        weights: `[U, B]`, whole numbers as float32.

    Returns:
        float64 `[B]`; NaN where a class has no weight.
    """
    order = np.argsort(y_pred, kind="stable")
    scores, users, positive = y_pred[order], users[order], y_true[order] > 0.5
    of_positives, of_negatives = weights[users[positive]], weights[users[~positive]]
    exact = np.float32 if len(scores) < 2**23 else np.float64  # of sums of whole numbers
    below = np.zeros((len(of_negatives) + 1, weights.shape[1]), exact)
    np.cumsum(of_negatives, axis=0, dtype=exact, out=below[1:])
    first = np.searchsorted(scores[~positive], scores[positive], "left")
    last = np.searchsorted(scores[~positive], scores[positive], "right")  # ties count half
    won = (of_positives * (below[first] + below[last])).sum(axis=0, dtype=np.float64) / 2
    pairs = of_positives.sum(axis=0, dtype=np.float64) * below[-1]
    return np.divide(won, pairs, out=np.full(len(won), np.nan), where=pairs > 0)
