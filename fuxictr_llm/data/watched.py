"""Progress of what polars and FuxiCTR do without a word: passes over raw files, and fitting.

Rows are counted as they come by; they and their order stay as they are.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import polars as pl

from fuxictr_llm.common.progress import Progress
from fuxictr_llm.host.preprocess import FeatureProcessor

AFFECTS_RESULTS = False  # see common/code_digest.py

WITH_VOCABULARY = ("categorical", "meta", "sequence")


def counting(frame: pl.LazyFrame, progress: Progress) -> pl.LazyFrame:
    """The frame; its rows count as done when they are read."""

    def count(rows: pl.DataFrame) -> pl.DataFrame:
        progress.update(len(rows))
        return rows

    return frame.map_batches(count, streamable=True, validate_output_schema=False)


@contextmanager
def watched(frame: pl.LazyFrame, name: str, total: int) -> Iterator[pl.LazyFrame]:
    """The frame, which is read once in the block, with progress.

    Args:
        name: as for `Progress`.
        total: how many rows it has, or about so many.
    """
    with Progress(name, total) as progress:
        yield counting(frame, progress)
        progress.total = progress.done  # now it is known


class ShowsFit(FeatureProcessor):
    """Mixed into a FeatureProcessor: `fit` shows the rows that it reads, then the columns whose vocabulary it makes.

    Attributes:
        rows: of each split, set before `fit`.
    """

    NOT_PICKLED = ("rows", "_open", "_columns")
    feature_cols: list[dict[str, Any]]
    rows: Mapping[str, int] = {}
    _columns: Progress | None = None

    def fit(self, *args: Any, **kwargs: Any) -> None:
        with ExitStack() as self._open:
            super().fit(*args, **kwargs)

    def _collect_statistics(self, train_ddf: pl.LazyFrame, *args: Any, **kwargs: Any) -> Any:
        with watched(train_ddf, "counting values of train", self.rows.get("train", 0)) as frame:
            statistics = super()._collect_statistics(frame, *args, **kwargs)
        columns = [col for col in self.feature_cols if col.get("active", True) and col["type"] in WITH_VOCABULARY]
        self._columns = self._open.enter_context(Progress("making vocabularies", len(columns), "columns"))
        return statistics

    def fit_meta_col(self, *args: Any, **kwargs: Any) -> None:
        super().fit_meta_col(*args, **kwargs)
        self._column_done()

    def fit_categorical_col(self, *args: Any, **kwargs: Any) -> None:
        super().fit_categorical_col(*args, **kwargs)
        self._column_done()

    def fit_sequence_col(self, *args: Any, **kwargs: Any) -> None:
        super().fit_sequence_col(*args, **kwargs)
        self._column_done()

    def _column_done(self) -> None:
        if self._columns is not None:
            self._columns.update(1)
            if self._columns.done == self._columns.total:
                self._open.close()
