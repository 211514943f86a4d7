"""A split's ids and values as parquet, in one file or in blocks, written slice by slice: no split is in memory."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from fuxictr_llm.common.progress import Progress
from fuxictr_llm.data.id_columns import IdColumns
from fuxictr_llm.data.raw import RawSplit
from fuxictr_llm.data.raw_checks import check_made, normalizers
from fuxictr_llm.host.preprocess import FeatureProcessor

SLICE_ROWS = 100_000


def write_splits(
    processor: FeatureProcessor, frames: Mapping[str, pl.LazyFrame], splits: Mapping[str, RawSplit], block_rows: int = 0
) -> None:
    """Transform preprocessed splits with a fitted processor, and write them into its folder.

    Args:
        processor: knows the rows of each split.
        frames: by split.
        splits: their raw files.
        block_rows: as for `Blocks`.

    Raises:
        UserError: a normalizer makes an infinite number, or NaN.
    """
    known: dict[Any, Any] = {}
    for split, frame in frames.items():
        rows, columns = processor.rows[split], IdColumns(processor, frame.collect_schema(), known)
        with (
            Progress(f"building {split}", rows) as progress,
            Blocks(Path(processor.data_dir), split, rows, block_rows) as blocks,
        ):
            _write(columns, frame, splits[split], blocks, progress)


def _write(columns: IdColumns, frame: pl.LazyFrame, split: RawSplit, blocks: "Blocks", progress: Progress) -> None:
    normalized, start = dict(normalizers(split.params)), 0
    with ThreadPoolExecutor(1) as writer:
        written = writer.submit(lambda: None)
        for rows in columns.prepared(frame).collect_batches(chunk_size=SLICE_ROWS, maintain_order=True):
            made = columns.transform(rows)
            check_made(made, normalized, start, split)
            written.result()  # a slice is written while the next one is made
            written = writer.submit(blocks.write, pa.table({name: _arrow(values) for name, values in made.items()}))
            start += len(rows)
            progress.update(len(rows))
        written.result()


class Blocks:
    """The file `{split}.parquet` of a folder, or with `block_rows` a folder `{split}` of them, of FuxiCTR's names.

    As FuxiCTR makes them, there are as many blocks as have `block_rows` rows, and they are of about the same size.

    Args:
        folder: which exists.
        split: its name.
        rows: that will come.
        block_rows: 0 for one file.
    """

    def __init__(self, folder: Path, split: str, rows: int, block_rows: int = 0):
        self._paths, count = [folder / f"{split}.parquet"], 1
        if block_rows:
            count = max(rows // block_rows, 1)
            self._paths = [folder / split / f"part-{index:06d}.parquet" for index in range(count)]
            (folder / split).mkdir()
        self._ends = [rows * (index + 1) // count for index in range(count)]
        self._start = 0
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> "Blocks":
        return self

    def __exit__(self, *_: Any) -> None:
        self._close()

    def write(self, table: pa.Table) -> None:
        """Add rows; the parts of them that are in different blocks go into different files."""
        while len(table):
            part = table.slice(0, self._ends[0] - self._start)
            self._writer = self._writer or pq.ParquetWriter(self._paths[0], table.schema)
            self._writer.write_table(part)
            self._start += len(part)
            table = table.slice(len(part))
            if self._start == self._ends[0]:
                self._close()
                del self._paths[0], self._ends[0]

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _arrow(values: Any) -> pa.Array:
    """A column of parquet; a 2-d array `[rows, L]` becomes lists of length L."""
    if getattr(values, "ndim", 1) == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])
    return pa.array(values)
