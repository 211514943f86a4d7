"""The metrics of predictions for rows that have labels: those of the run, computed as it computed them."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import polars as pl
from fuxictr.pytorch.models import MultiTaskModel

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.keys import GROUP_METRICS
from fuxictr_llm.serving.load import ServedModel
from fuxictr_llm.serving.raw import Counts, Where


class Measuring:
    """Collects labels and probabilities, 8 bytes a row and label.

    Args:
        served: the model.
        columns: of the raw rows.

    Attributes:
        unmeasured: why there are no metrics; None while there may be some.
        left_out: metrics of the run that cannot be computed, as the rows lack its `group_id`.
    """

    def __init__(self, served: ServedModel, columns: Iterable[str]):
        self._served, self._columns = served, {*columns}
        evaluation = served.config.get("evaluation") or {}
        self._metrics: list[str] = list(evaluation.get("metrics") or ["AUC", "logloss"])
        self._group: str = evaluation.get("group_id") or ""
        self.unmeasured: str | None = None
        if missing := [label for label in served.labels if not self._has(label)]:
            self.unmeasured = f"the rows have no label {missing[0]!r}"
        of_groups = [name for name in self._metrics if name.startswith(GROUP_METRICS)]
        self.left_out = of_groups if of_groups and not (self._group and self._has(self._group)) else []
        self._metrics = [name for name in self._metrics if name not in self.left_out]
        self._needs_groups = bool(of_groups) and not self.left_out
        self._ids: dict[Any, int] = {}
        self._parts: list[tuple[np.ndarray, np.ndarray, np.ndarray | None]] = []

    def _has(self, name: str) -> bool:
        fitted = self._served.raw.fitted
        if name not in fitted.declared and name not in self._served.raw.labels:
            return False
        return self._served.raw.form({}).steps([name]).reads <= self._columns

    def add(self, rows: pl.DataFrame, batch: Mapping[str, np.ndarray], probabilities: np.ndarray, where: Where) -> None:
        """Add raw rows, the batch that they became, and what the model says of them, `[N]` or `[N, T]`."""
        if self.unmeasured is not None:
            return
        try:
            labels = self._labels(rows, where)
        except UserError as error:
            self.unmeasured = str(error)
            self._parts.clear()
            return
        groups = self._groups(rows, batch, where) if self._needs_groups else None
        self._parts.append((labels, probabilities.reshape(len(rows), -1), groups))

    def _labels(self, rows: pl.DataFrame, where: Where) -> np.ndarray:
        names, counts = self._served.labels, Counts()
        made = self._served.raw.made(rows, names, where, counts)
        for name, count in counts.blank.items():
            raise UserError(f"label {name!r} is empty in {count} of the rows up to {where(len(rows) - 1)}")
        for name in names:
            wrong = ~made[name].cast(pl.Float64).is_in([0.0, 1.0])
            if wrong.any():
                row = int(wrong.fill_null(True).arg_max() or 0)
                raise UserError(f"label {name!r} must be 0 or 1 (got {made[name][row]} in {where(row)})")
        return np.stack([made[name].cast(pl.Float32).to_numpy() for name in names], axis=1)

    def _groups(self, rows: pl.DataFrame, batch: Mapping[str, np.ndarray], where: Where) -> np.ndarray:
        """A number for each group: what numbers they are does not matter.

        Where the model reads the column, all values that training did not see are one group, as in the run.
        """
        if self._group in batch:
            return batch[self._group]
        made = self._served.raw.made(rows, [self._group], where)[self._group]
        return np.array([self._ids.setdefault(value, len(self._ids)) for value in made.to_list()])

    def metrics(self) -> dict[str, float] | None:
        """The metrics of all rows; None where there are none, and `unmeasured` says why."""
        if self.unmeasured is None and not self._parts:
            self.unmeasured = "there are no rows"
        if self.unmeasured is not None:
            return None
        y_true, y_pred = (np.concatenate([part[place] for part in self._parts]) for place in (0, 1))
        groups = np.concatenate([part[2] for part in self._parts]) if self._needs_groups else None
        labels, model = self._served.labels, self._served.model
        for index, label in enumerate(labels):
            if y_true[:, index].min() == y_true[:, index].max():
                self.unmeasured = f"label {label!r} has one value only"
                return None
        # FuxiCTR's metrics take numbers of this type, and their last digits depend on it.
        by_label = [
            dict(
                model.evaluate_metrics(
                    y_true[:, i].astype(np.float64), y_pred[:, i].astype(np.float64), self._metrics, groups
                )
            )
            for i in range(len(labels))
        ]
        if not isinstance(model, MultiTaskModel):
            return by_label[0]
        named = {
            f"{label}_{name}": value for label, of in zip(labels, by_label, strict=True) for name, value in of.items()
        }
        return named | {name: float(np.mean([of[name] for of in by_label])) for name in by_label[0]}
