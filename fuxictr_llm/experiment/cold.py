"""Embeddings of values outside train's vocabulary, put into a trained model; what they do on the rows that have them.

Shape symbols: `N` rows, `B` of a batch, `L` ids of a row in a column, `T` tasks.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor

from fuxictr_llm.common.files import explain_write_errors, replacing
from fuxictr_llm.common.processes import is_main
from fuxictr_llm.common.runs import Run
from fuxictr_llm.data.loader import make_loaders
from fuxictr_llm.data.shares import OwnBatches
from fuxictr_llm.data.slices import metrics_of
from fuxictr_llm.host.batches import columns_of, labels_of, predictions_of, truth_of, with_columns
from fuxictr_llm.host.tables import add_rows, check_tables, describe_rows, tables_of
from fuxictr_llm.llm.vectors.cold import ColdColumn, ColdValues
from fuxictr_llm.training.build import OTHER_MODEL_ROOT

ANY = "any"  # the rows with an unseen value in one column or more


def check_cold_values(model: BaseModel, cold: ColdValues) -> None:
    """Check before training that the model can be given rows for unseen values.

    Raises:
        UserError: it cannot.
    """
    columns = {column.owner: column.columns for column in cold.columns}
    check_tables(model, columns, {column.owner: len(column.values) for column in cold.columns})


def add_cold_values(model: BaseModel, cold: ColdValues, run: Run) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give a trained model rows for unseen values, and the run the data in which they have ids; save its weights anew.

    Returns:
        What the record says of it, and the loaders of valid and, where there is one, test.
    """
    facts = {"rows": cold.kind, "columns": _with_rows(model, cold, run)}
    run.params |= {f"{split}_data": path for split, path in cold.data.items()}
    if is_main():
        with explain_write_errors(Path(model.checkpoint), OTHER_MODEL_ROOT), replacing(model.checkpoint) as temporary:
            torch.save(model.state_dict(), temporary)
    loaders = {split: _loader(run, path) for split, path in cold.data.items()}
    return facts | {"unseen": {split: metrics_of_unseen(model, cold, rows) for split, rows in loaders.items()}}, loaders


def _loader(run: Run, path: str) -> Any:
    return make_loaders(run.feature_map, {**run.params, "test_data": path}, "test")


def _with_rows(model: BaseModel, cold: ColdValues, run: Run) -> dict[str, Any]:
    described: dict[str, Any] = {}
    for column in cold.columns:
        tables = {}
        for table in tables_of(model, column.columns, column.first_id):
            rows, facts = cold.rows(column, table.weight.detach().cpu().numpy(), table.columns)
            add_rows(table, torch.from_numpy(rows))
            tables[table.name] = facts
        for feature_map in {id(each): each for each in (model.feature_map, run.feature_map)}.values():
            describe_rows(feature_map, column.columns, column.first_id, len(column.values))
        described[column.owner] = {
            "columns": list(column.columns),
            "first_id": column.first_id,
            "values": list(column.values),
            "without_words": column.without_words,
            "train_values": len(column.train_ids),
            "tables": tables,
        }
        logging.info("cold_values: %r has %d more rows in %s", column.owner, len(column.values), ", ".join(tables))
    return described


def metrics_of_unseen(model: BaseModel, cold: ColdValues, rows: Any) -> dict[str, dict[str, Any]]:
    """Metrics on the rows with unseen values, as they are and as they would be `without` rows of their own.

    Args:
        model: with these rows.
        rows: a loader in whose rows the values have their ids.

    Returns:
        For `any` and each column, `rows`, `values` (distinct ones among them), AUC and logloss, and the same two
        `without`.
    """
    columns = {name: column for column in cold.columns for name in column.columns}
    unseen, y_true, with_rows, without = _predicted(model, rows, columns)
    labels = labels_of(type(model), model.feature_map)
    measured = {}
    for name, ids in {ANY: np.concatenate([*unseen.values()], axis=1), **unseen}.items():
        chosen = (ids >= 0).any(axis=1)
        facts = {"rows": int(chosen.sum())} | ({} if name == ANY else {"values": len(np.unique(ids[ids >= 0]))})
        of_both = (metrics_of(y_true[chosen], y_pred[chosen], labels) for y_pred in (with_rows, without))
        own, others = of_both
        measured[name] = facts | own | {"without": others}
    return measured


def _predicted(
    model: BaseModel, rows: Any, columns: Mapping[str, ColdColumn]
) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """Column -> its ids of unseen values, -1 in the place of others; labels; predictions with such ids, and without.

    Ids are `[N, L]`, 1 for L but of a sequence; each other array has N values, or `[N, T]`.
    """
    model.eval()
    parts: list[list[Tensor]] = []
    own = OwnBatches(rows)
    with torch.inference_mode():
        for batch in own:
            ids = {name: columns_of(batch)[name] for name in columns}
            unseen = [_unseen(ids[name], column) for name, column in columns.items()]
            before = {name: _unknown(ids[name], column) for name, column in columns.items()}
            both = [predictions_of(model, model.forward(one)) for one in (batch, with_columns(batch, before))]
            parts.append([*unseen, truth_of(model, batch), *both])
    arrays = own.gathered(*(torch.cat(of).cpu().numpy() for of in zip(*parts, strict=True)))
    y_true, with_rows, without = (of[:, 0] if of.shape[1] == 1 else of for of in arrays[len(columns) :])
    ids_of = dict(zip(columns, arrays, strict=False))
    return ids_of, y_true.astype(np.float64), with_rows.astype(np.float64), without.astype(np.float64)


def _unseen(ids: Tensor, column: ColdColumn) -> Tensor:
    """The ids of unseen values, -1 in the place of others, `[B, L]`."""
    return torch.where(ids >= column.first_id, ids, -1).reshape(len(ids), -1)


def _unknown(ids: Tensor, column: ColdColumn) -> Tensor:
    """The ids as they would be without those of unseen values."""
    return torch.where(ids >= column.first_id, column.oov_id, ids)


def unseen_table(facts: Mapping[str, Any], split: str = "test") -> list[str]:
    """Lines of a run's summary: AUC on the rows with unseen values, without and with rows of their own."""
    measured = facts["unseen"].get(split)
    if not measured:
        return []
    head = f"AUC, unseen values ({facts['rows']})"
    lines = [f"{head:36}{'rows':>10}{'without':>12}{'with':>12}"]
    for name, of in measured.items():
        values = [None if of["rows"] == 0 else of["without"]["AUC"], None if of["rows"] == 0 else of["AUC"]]
        shown = ["-" if value is None else f"{value:.6f}" for value in values]
        lines.append(f"{name:36}{of['rows']:>10,}" + "".join(f"{value:>12}" for value in shown))
    return lines
