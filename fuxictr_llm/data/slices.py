"""Test AUC and logloss by how often a row's item occurs in train: unseen, rare, middle, head.

Shape symbols: `N` rows that are evaluated, `I` items of the train split, `T` tasks.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.models import BaseModel
from sklearn.metrics import log_loss, roc_auc_score

from fuxictr_llm.common.errors import UserError, reason_of, unknown
from fuxictr_llm.common.files import read_json
from fuxictr_llm.common.progress import Watched
from fuxictr_llm.common.runs import Run
from fuxictr_llm.data.field_words import RESERVED, read_field_config, values_for_missing
from fuxictr_llm.data.in_memory import data_files
from fuxictr_llm.data.shares import OwnBatches
from fuxictr_llm.data.watched import watched
from fuxictr_llm.host.batches import Batch, columns_of, labels_of, predictions_of, rows_of, truth_of

SLICES = ("unseen", "rare", "middle", "head")
# Tenths of the train rows that the least and the most frequent items make up together.
RARE, HEAD = 1, 5
ONE_ID_A_ROW = ("categorical", "meta")


class Predictions(NamedTuple):
    """Of N rows, in the loader's order: ids of their items `[N]`, labels and probabilities `[N]` or `[N, T]`."""

    item_ids: np.ndarray
    y_true: np.ndarray
    y_pred: np.ndarray


class FrequencySlices:
    """Items by their train rows. Items with equally many are in one slice.

    `head` is the fewest most frequent items that make up half of the train rows, `rare` the fewest least frequent
    ones that make up a tenth (without those in head), `middle` the rest. `unseen` has no train row, or its value is
    out of the vocabulary: then nobody knows which item it is.

    Args:
        column: of the items.
        items: their ids, sorted, `[I]`.
        counts: train rows of each, `[I]`.
    """

    def __init__(self, column: str, items: np.ndarray, counts: np.ndarray):
        self.column, self.items, self.counts = column, items, counts
        ascending = np.sort(counts)
        self._most_rare = _count_that_reaches(RARE, ascending)
        self._least_head = _count_that_reaches(HEAD, ascending[::-1])

    @classmethod
    def from_run(cls, run: Run) -> "FrequencySlices | None":
        """The slices of a run, whose train split is counted; None: no column has the items.

        Raises:
            UserError: `slice_by` is no column or has several ids a row, or the train split cannot be read.
        """
        column = item_column(run.params, run.feature_map)
        if column is None:
            return None
        items, counts = _train_counts(run.params["train_data"], column)
        known = ~np.isin(items, _ids_of_no_item(column, run.feature_map, run.data_dir))
        return cls(column, items[known], counts[known])

    def of_model(self, model: BaseModel, rows: Iterable[Batch]) -> dict[str, Any]:
        """`of_predictions` of a model on a loader's batches."""
        return self.of_predictions(
            *predict(model, _watched(model, rows), self.column), labels_of(type(model), model.feature_map)
        )

    def of_predictions(
        self, item_ids: np.ndarray, y_true: np.ndarray, y_pred: np.ndarray, labels: Sequence[str] = ()
    ) -> dict[str, Any]:
        """What a run record says of a network, from what `predict` gives.

        Args:
            labels: of `[N, T]`: each has metrics under its name too, as in FuxiCTR (`<label>_AUC`), and `AUC` and
                `logloss` are the means.

        Returns:
            `by`: the column; `slices`: by name, `train_rows` (the fewest and the most of its items, None where train
            has no such item), `rows`, `items` (distinct ids among these rows; all out of vocabulary have one),
            `AUC` (None where one class is absent) and `logloss` (None without rows).
        """
        slice_of_row, slice_of_item = self._slice_of(self._counts_of(item_ids)), self._slice_of(self.counts)
        slices = {}
        for index, name in enumerate(SLICES):
            rows, counts = slice_of_row == index, self.counts[slice_of_item == index]
            bounds = [0, 0] if name == "unseen" else [int(counts.min()), int(counts.max())] if len(counts) else None
            facts: dict[str, Any] = {
                "train_rows": bounds,
                "rows": int(rows.sum()),
                "items": len(np.unique(item_ids[rows])),
            }
            slices[name] = facts | metrics_of(y_true[rows], y_pred[rows], labels)
        return {"by": self.column, "slices": slices}

    def _counts_of(self, item_ids: np.ndarray) -> np.ndarray:
        """Train rows of the item of each row, `[N]`."""
        if not len(self.items):
            return np.zeros(len(item_ids), dtype=np.int64)
        places = np.searchsorted(self.items, item_ids).clip(max=len(self.items) - 1)
        return np.where(self.items[places] == item_ids, self.counts[places], 0)

    def _slice_of(self, counts: np.ndarray) -> np.ndarray:
        """Positions in SLICES. One slice cannot be both: where all items are equally frequent, they are the head."""
        unseen, rare, middle, head = range(len(SLICES))
        conditions = [counts == 0, counts >= self._least_head, counts <= self._most_rare]
        return np.select(conditions, [unseen, head, rare], default=middle)


def item_column(params: Mapping[str, Any], feature_map: FeatureMap) -> str | None:
    """The column that holds the items: `slice_by`, else the id of the field config's entity `item`, if it has one.

    Raises:
        UserError: the column is not there, or a row has no id in it, or several.
    """
    column, where = params.get("slice_by"), "slice_by"
    if column is None:
        entities = read_field_config(params.get("field_config")).get("entities") or {}
        column, where = (entities.get("item") or {}).get("id"), f"entity 'item' of {params.get('field_config')!r}"
        if column is None:
            return None
        if params.get("item_info"):
            logging.info("No metrics by item frequency: the rows of long sequences have indexes; slice_by names one")
            return None
        if column not in feature_map.features:  # left out by use_features, say
            logging.info("No metrics by item frequency: the columns in use lack %r, the id of an item", column)
            return None
    if column not in feature_map.features:
        raise unknown("column", column, feature_map.features, where)
    kind = feature_map.features[column]["type"]
    if kind not in ONE_ID_A_ROW:
        fitting = [name for name, spec in feature_map.features.items() if spec["type"] in ONE_ID_A_ROW]
        raise UserError(
            f"{where}: column {column!r} is of type {kind}; an item is one id a row, as in: {', '.join(fitting)}"
        )
    return column


def predict(model: BaseModel, rows: Iterable[Batch], column: str | None = None) -> Predictions:
    """Run a model over a loader's batches once, in evaluation mode, as FuxiCTR's `evaluate` does.

    Under torchrun each process runs it over some of the batches, and gets the predictions of all.

    Args:
        rows: any loader; its batches may have columns that other models lack.
        column: of the items; None: their ids are all 0.
    """
    model.eval()
    ids, labels, probabilities = [], [], []
    own = OwnBatches(rows)
    with torch.inference_mode():
        for batch in own:
            labels.append(truth_of(model, batch))
            of_items = columns_of(batch)[column] if column else torch.zeros(len(labels[-1]), dtype=torch.int64)
            ids.append(of_items.reshape(-1).clone())  # a view would keep the whole batch in memory
            probabilities.append(predictions_of(model, model.forward(batch)))
    # Moved at the end: a GPU need not wait for every batch.
    arrays = (torch.cat(parts).cpu().numpy() if parts else None for parts in (ids, labels, probabilities))
    item_ids, y_true, y_pred = own.gathered(*arrays)
    if y_true.shape[1] == 1:
        y_true, y_pred = y_true[:, 0], y_pred[:, 0]
    return Predictions(item_ids, y_true.astype(np.float64), y_pred.astype(np.float64))


def _watched(model: BaseModel, rows: Any) -> Iterable[Batch]:
    """The rows, with progress where it is known how many batches there are."""
    if not hasattr(rows, "__len__"):
        return rows
    return Watched(rows, "metrics by item frequency", model._verbose > 0, rows_of)


def slices_table(networks: Mapping[str, Mapping[str, Any]]) -> str:
    """AUC of several networks side by side, a line a slice.

    Args:
        networks: name -> what `of_predictions` gave, all on the same rows.
    """
    first = next(iter(networks.values()))
    widths = {name: max(len(name), 8) for name in networks}
    head = [f"{'AUC by ' + first['by']:<20}{'train rows':>16}{'rows':>10}"]
    lines = [head + [f"{name:>{width}}" for name, width in widths.items()]]
    for name, facts in first["slices"].items():
        bounds = "-" if facts["train_rows"] is None else "-".join(map(str, dict.fromkeys(facts["train_rows"])))
        values = {network: measured["slices"][name]["AUC"] for network, measured in networks.items()}
        shown = {network: "-" if value is None else f"{value:.6f}" for network, value in values.items()}
        line = [f"{name:<20}{bounds:>16}{facts['rows']:>10,}"]
        lines.append(line + [f"{shown[network]:>{width}}" for network, width in widths.items()])
    return "\n".join("  ".join(line) for line in lines)


def _count_that_reaches(tenths: int, counts: np.ndarray) -> int:
    """The count of that item, in this order of items, with which the tenths of all rows are reached; 0 without any."""
    return int(counts[np.searchsorted(10 * np.cumsum(counts), tenths * counts.sum())]) if len(counts) else 0


def metrics_of(y_true: np.ndarray, y_pred: np.ndarray, labels: Sequence[str]) -> dict[str, float | None]:
    """AUC (None where one class is absent) and logloss (None without rows) of `[N]`; of `[N, T]`, see above."""
    if y_true.ndim == 1:
        return _metrics_of_task(y_true, y_pred)
    by_task = [_metrics_of_task(*columns) for columns in zip(y_true.T, y_pred.T, strict=True)]
    named = {f"{label}_{name}": value for label, of in zip(labels, by_task, strict=True) for name, value in of.items()}
    values = {name: [metrics[name] for metrics in by_task] for name in by_task[0]}
    means = {name: _mean(of_tasks) for name, of_tasks in values.items()}
    return named | means


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None


def _metrics_of_task(y_true: np.ndarray, y_pred: np.ndarray) -> dict[str, float | None]:
    both_classes = len(np.unique(y_true)) == 2
    return {
        "AUC": float(roc_auc_score(y_true, y_pred)) if both_classes else None,
        "logloss": float(log_loss(y_true, y_pred, labels=[0, 1])) if len(y_true) else None,
    }


def _train_counts(train_data: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    """The ids in a column of the built train split, sorted, and their rows; the split is never whole in memory."""
    try:
        frame = pl.concat([_column_of(path, column) for path in data_files(train_data)])
        total = frame.select(pl.len()).collect().item()
        with watched(frame, f"counting {column} of train", total) as rows:
            counted = rows.group_by(column).len("rows").sort(column).collect(engine="streaming")
    except (pl.exceptions.PolarsError, OSError, ValueError, KeyError) as error:
        raise UserError(f"column {column!r} of {train_data!r} cannot be read ({reason_of(error)})") from error
    return counted[column].to_numpy(), counted["rows"].to_numpy().astype(np.int64)


def _column_of(path: Path, column: str) -> pl.LazyFrame:
    if path.suffix == ".npz":
        return pl.LazyFrame({column: np.load(path)[column]})
    return pl.scan_parquet(path).select(column)


def _ids_of_no_item(column: str, feature_map: FeatureMap, data_dir: Path) -> list[int]:
    """Padding, the one id that all values out of the vocabulary have, and those of missing values."""
    vocabulary = (read_json(data_dir / "feature_vocab.json") or {}).get(column, {})
    missing = [value for value, (_, as_such) in values_for_missing(data_dir, column).items() if not as_such]
    names = [*RESERVED, *missing]
    ids = {vocabulary.get(name) for name in names} | {feature_map.features[column].get("padding_idx")}
    return [index for index in ids if index is not None]
