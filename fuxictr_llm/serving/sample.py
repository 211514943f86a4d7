"""A few rows and what a run predicted for them: its record has them, and an export of the run must predict the same.

What differs was made with other code than the run: a method's formula, edited since, is folded into the export.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor

from fuxictr_llm.common.code_digest import digest_of_code
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.enhancement.model import own_columns
from fuxictr_llm.host.batches import Batch, columns_of, predictions_of, rows_of, some_rows
from fuxictr_llm.registry import method_modules
from fuxictr_llm.serving.load import ServedModel

AFFECTS_RESULTS = False  # see common/code_digest.py
ROWS = 5
MOST_NUMBERS = 20_000  # in a record, where rows have wide columns of vectors
TOLERANCE, OF_GPUS = 1e-5, 1e-3  # of probabilities; a GPU computes convolutions in TF32


def sample_of(model: BaseModel, rows: Iterable[Batch]) -> dict[str, Any] | None:
    """The first rows of a loader that an export can answer, and their probabilities `[B, T]`, as lists.

    The rows are column -> `[B]` or `[B, L]`. None where there are none, or where batches are tuples, as those of models
    that cannot be exported.
    """
    batch = next(iter(rows), None)
    if not isinstance(batch, Mapping):
        return None
    features = model.feature_map.features
    read = [name for name in features if features[name]["type"] != "meta" and name not in own_columns(model)]
    width = sum(batch[name][:1].numel() for name in read if name in batch)
    batch = {name: column[_known(batch, read, features)] for name, column in batch.items()}
    batch = some_rows(batch, slice(0, max(1, min(ROWS, MOST_NUMBERS // max(1, width)))))
    if not rows_of(batch):
        return None
    model.eval()
    with torch.inference_mode():
        predicted = predictions_of(model, model.forward(batch)).float().cpu()
    columns = columns_of(batch)
    return {"columns": {name: columns[name].tolist() for name in read if name in columns}, "y_pred": predicted.tolist()}


def _known(batch: Mapping[str, Tensor], read: Iterable[str], features: Mapping[str, Any]) -> Tensor:
    """Rows without values that train lacks and a method knows by ids of their own, which an export does not: `[B]`."""
    known = torch.ones(rows_of(batch), dtype=torch.bool)
    for name in read:
        if name in batch and (size := features[name].get("vocab_size")):
            known &= (batch[name].reshape(len(known), -1) < size).all(dim=1).cpu()
    return known


def check_sample(served: ServedModel, record: Mapping[str, Any], where: str) -> None:
    """Check that an export predicts what its run predicted; records of earlier versions say nothing of it.

    Args:
        where: names the run in errors.

    Raises:
        UserError: it does not.
    """
    sample, settings = record.get("sample"), record["config"]
    if not sample or not {*served.fields} <= sample["columns"].keys():  # a method's columns that no export gives itself
        return
    expected = np.asarray(sample["y_pred"], dtype=np.float64)
    predicted = served.predict(sample["columns"])
    if predicted.size != expected.size:
        raise UserError(f"the record of {where} is damaged: its sample has other rows than predictions; train again")
    predicted = predicted.reshape(expected.shape)
    gpu = settings.get("gpu")
    tolerance = OF_GPUS if gpu is not None and gpu >= 0 else TOLERANCE
    apart = ~np.isclose(predicted, expected, rtol=0, atol=tolerance, equal_nan=True)
    if not apart.any():
        return
    row, task = map(int, np.argwhere(apart)[0])
    raise UserError(
        f"{where} predicts {predicted[row, task]:.6f} for a row for which the run predicted {expected[row, task]:.6f}: "
        f"{_reason(settings.get('method'), record)}; train again, or export with the code of the run"
    )


def _reason(method: str | None, record: Mapping[str, Any]) -> str:
    noted = ((record.get("sources") or {}).get("code") or {}).get("method")
    if not method or noted is None:
        return "the code of its backbone was changed since"
    if noted != digest_of_code(method_modules(method)):
        return f"the code of {method} was changed since"
    return f"the fold of {method} is not what its model computes, or the code of its backbone was changed since"
