"""The files that built data consists of, read a column or a slice at a time; what is damaged is named."""

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fuxictr_llm.common.errors import UserError, reason_of


class ParquetPart:
    """A parquet file: its columns' `names`, its `rows`, and the columns as arrays.

    Raises:
        UserError: from each method, the file is not there, or is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        with readable(path):
            self.names = pq.read_schema(path).names

    @property
    def rows(self) -> int:
        with readable(self.path):
            return pq.read_metadata(self.path).num_rows

    def read(self, name: str) -> np.ndarray:
        with readable(self.path):
            return as_array(name, pq.read_table(self.path, columns=[name]).column(name), self.path)

    def slices(self, names: list[str], rows: int) -> Iterator[dict[str, np.ndarray]]:
        with readable(self.path):
            parts = pq.ParquetFile(self.path).iter_batches(rows, columns=names)
        while True:
            with readable(self.path):
                part = next(parts, None)
            if part is None:
                return
            table = pa.Table.from_batches([part])
            yield {name: np.array(as_array(name, table.column(name), self.path)) for name in names}


class NpzPart:
    """The same of an npz file."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.arrays = np.load(path)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise damaged(path, error) from error
        self.names = self.arrays.files

    @property
    def rows(self) -> int:
        return len(self.read(self.names[0])) if self.names else 0

    def read(self, name: str) -> np.ndarray:
        try:
            return self.arrays[name]
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:  # Python objects, too
            raise damaged(self.path, error) from error

    def slices(self, names: list[str], rows: int) -> Iterator[dict[str, np.ndarray]]:
        columns = {name: self.read(name) for name in names}
        for start in range(0, len(columns[names[0]]), rows):
            yield {name: column[start : start + rows] for name, column in columns.items()}


def as_array(name: str, column: pa.ChunkedArray, path: Path) -> np.ndarray:
    """A column of a parquet file, `[rows]`, or `[rows, L]` of lists.

    Raises:
        UserError: its lists are of different lengths.
    """
    if not pa.types.is_nested(column.type):
        return column.to_numpy()
    lengths = pc.unique(pc.list_value_length(column))
    if len(lengths) > 1 or lengths.null_count:
        raise UserError(f"column {name!r} of {str(path)!r} holds lists of different lengths; pad them")
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn a failure to read the parquet file in the block into a UserError that says what to do."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"there is no file {str(path)!r}") from error
    except (OSError, pa.ArrowException) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{str(path)!r} is damaged ({reason_of(error)}); remove it and build or download it again")
