"""What `preprocess` of a FeatureProcessor does to a frame, noted once and repeated on any rows, also by threads.

`preprocess` asks for the schema of its frame again and again, which takes longer than the work on a few rows.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import polars as pl


class NotedFrame:
    """Stands in for a frame without rows: notes the expressions that it is given.

    Args:
        schema: name -> type of its columns.

    Attributes:
        steps: the expressions of each call of `with_columns`.
    """

    def __init__(self, schema: Mapping[str, pl.DataType]):
        self._frame = pl.LazyFrame(schema=dict(schema))
        self.steps: list[list[pl.Expr]] = []

    def collect_schema(self) -> pl.Schema:
        """The schema after all steps."""
        return self._frame.collect_schema()

    def with_columns(self, *columns: Any) -> "NotedFrame":
        """Note a step; the frame after it."""
        step = [column for part in columns for column in ([part] if isinstance(part, pl.Expr) else part)]
        return self._next(self._frame.with_columns(step), step)

    def select(self, names: list[str]) -> "NotedFrame":
        """The frame with some of its columns."""
        return self._next(self._frame.select(names))

    def _next(self, frame: pl.LazyFrame, *steps: list[pl.Expr]) -> "NotedFrame":
        after = NotedFrame({})
        after._frame, after.steps = frame, [*self.steps, *steps]
        return after


class Steps:
    """Noted steps, as far as some columns need them.

    Args:
        steps: of a `NotedFrame`.
        names: of the columns that are wanted.

    Attributes:
        reads: the columns that a frame must have.
    """

    def __init__(self, steps: Sequence[Iterable[pl.Expr]], names: Sequence[str]):
        wanted, kept = {*names}, []
        for step in reversed(steps):
            used = [column for column in step if column.meta.output_name() in wanted]
            wanted -= {column.meta.output_name() for column in used}
            wanted |= {name for column in used for name in column.meta.root_names()}
            kept.append(used)
        self.reads = frozenset(wanted)
        self._names, self._steps = [*names], _joined(reversed(kept))

    def __call__(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The wanted columns of these rows."""
        frame = rows.lazy()
        for step in self._steps:
            frame = frame.with_columns(step)
        return frame.select(self._names).collect()


def _joined(steps: Iterable[Iterable[pl.Expr]]) -> list[list[pl.Expr]]:
    """As few steps as possible: polars computes the columns of one side by side."""
    joined: list[list[pl.Expr]] = []
    made: set[str] = set()
    for step in steps:
        columns = [*step]
        reads = {name for column in columns for name in column.meta.root_names()}
        makes = {column.meta.output_name() for column in columns}
        if not joined or made & (reads | makes):
            joined.append([])
            made = set()
        joined[-1] += columns
        made |= makes
    return joined
