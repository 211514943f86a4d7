"""Predictions for a file of raw rows, from an export or a run, in slices: memory does not grow with the rows."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.progress import Progress
from fuxictr_llm.serving.config import CONFIG
from fuxictr_llm.serving.export import export_run
from fuxictr_llm.serving.files import RawFile, check_target, writing
from fuxictr_llm.serving.load import SLICE_ROWS, ServedModel, load_model
from fuxictr_llm.serving.measuring import Measuring
from fuxictr_llm.serving.raw import Counts

AT_ONCE = 100_000  # about as many rows are in memory at a time


@dataclass(frozen=True)
class Predicted:
    """What was predicted.

    Attributes:
        counts: of rows, unseen values and empty cells.
        metrics: as the run's; None without labels.
        unmeasured: why there are no metrics.
        left_out: metrics of the run that need a column which the rows lack.
    """

    counts: Counts
    metrics: dict[str, float] | None
    unmeasured: str | None
    left_out: list[str]


@contextmanager
def served_model(source: Path | str, gpu: int = -1, **given: Any) -> Iterator[ServedModel]:
    """The model of an export's folder, or of a run, as `export_run` takes it, for the block.

    Args:
        given: as for `load_model`.

    Raises:
        UserError: it cannot be loaded.
    """
    if (Path(source) / CONFIG).is_file():
        yield load_model(source, gpu, **given)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield load_model(export_run(source, Path(folder) / "model"), gpu, **given)


def probability_names(served: ServedModel) -> list[str]:
    """The columns of probabilities, one a label: `click_probability` for the label `click`."""
    return [f"{label}_probability" for label in served.labels]


def predict_file(served: ServedModel, data: Path, to: Path | None = None, sep: str | None = None) -> Predicted:
    """Predict for the rows of a file, and measure the predictions where it has the labels.

    Rows go through the model in batches as the run evaluated them, so that metrics are equal to the last digit.

    Args:
        data: csv (also packed, .csv.gz) or parquet, with the raw columns of the data set in any order, and others.
        to: csv or parquet: the same rows, with the columns of `probability_names`. None: only metrics are wanted.
        sep: between the cells of csv; None: as in training.

    Raises:
        UserError: the file cannot be read, lacks a column or holds what a column cannot, or `to` cannot be written;
            then nothing is.
    """
    raw, names = served.raw, probability_names(served)
    file = RawFile(data, sep or raw.fitted.settings.get("sep") or ",")
    try:
        raw.check_there(file.schema, raw.needed)
    except UserError as error:
        if sign := file.other_separator():
            wrong = f"the cells of {file.name} are separated by {sign!r}, not {file.sep!r}; say it with --sep"
            raise UserError(wrong) from error
        raise UserError(f"{file.name}: {error}") from error
    if to is not None:
        check_target(to, file.schema, names)
    measuring, counts = Measuring(served, file.schema), Counts()
    if to is None and measuring.unmeasured:
        raise UserError(f"{file.name}: {measuring.unmeasured}, and no file takes the probabilities; name one with --to")
    batch_rows = (served.config.get("evaluation") or {}).get("batch_size") or SLICE_ROWS
    slice_rows = batch_rows * max(AT_ONCE // batch_rows, 1)
    with (
        Progress(f"predicting {data.name}", file.about_rows) as progress,
        nullcontext() if to is None else writing(to, file.sep) as write,
    ):
        for rows in file.slices(slice_rows):
            start = counts.rows

            def where(row: int, start: int = start) -> str:
                return file.where(start + row)

            batch, unusual = raw(rows, where)
            probabilities = served.predict(batch, batch_rows)
            measuring.add(rows, batch, probabilities, where)
            counts.add(unusual)
            if write is not None:
                columns = probabilities.reshape(len(rows), -1).T
                write(rows.with_columns(pl.Series(name, of) for name, of in zip(names, columns, strict=True)))
            progress.update(len(rows))
        if not counts.rows:
            raise UserError(f"{file.name} is empty: it has a header and no rows")
    return Predicted(counts, measuring.metrics(), measuring.unmeasured, measuring.left_out)
