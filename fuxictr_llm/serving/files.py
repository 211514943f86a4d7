"""Raw rows of a csv or parquet file in slices, and the file with a column more, written slice by slice."""

import csv
import gzip
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import polars as pl
import pyarrow.parquet as pq

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.files import explain_write_errors, replacing
from fuxictr_llm.data.raw import PACKED, about_rows

ENDINGS = (".csv", PACKED, ".parquet")
SEPARATORS = ("\t", ";", "|", ",")


class RawFile:
    """A file of raw rows; what a csv file holds is text.

    Args:
        path: of csv (packed too) or parquet.
        sep: between the cells of csv.

    Attributes:
        schema: name -> type of its columns.

    Raises:
        UserError: it is not there, is empty, or cannot be read.
    """

    def __init__(self, path: Path, sep: str = ","):
        self.path, self.sep = path, sep
        if len(sep.encode()) != 1:
            raise UserError(f"--sep {sep!r} must be one character, as ',' or '\\t'")
        if not path.is_file():
            raise UserError(f"--data {str(path)!r} is no file; name a {' or '.join(ENDINGS)} file")
        if not path.name.endswith(ENDINGS):
            raise UserError(f"--data {str(path)!r} must end in {', '.join(ENDINGS)}")
        if not path.stat().st_size:
            raise UserError(f"{self.name} is empty")
        self.is_csv = path.suffix != ".parquet"
        try:
            self.schema = dict(self._scan().collect_schema())
        except (pl.exceptions.PolarsError, OSError) as error:
            raise self._unread(error) from error

    @property
    def name(self) -> str:
        """Words for the file."""
        return f"data file {str(self.path)!r}"

    @property
    def about_rows(self) -> int:
        """How many rows it has: of csv an estimate."""
        return about_rows(self.path) if self.is_csv else pq.read_metadata(self.path).num_rows

    def slices(self, rows: int) -> Iterator[pl.DataFrame]:
        """All rows in their order, `rows` at a time; the last ones may be fewer.

        Raises:
            UserError: the file is damaged, or a row has more cells than the header.
        """
        rest: list[pl.DataFrame] = []
        for part in self._parts(rows):
            rest.append(part)
            if sum(map(len, rest)) >= rows:
                whole = pl.concat(rest)
                full = len(whole) - len(whole) % rows
                yield from (whole.slice(start, rows) for start in range(0, full, rows))
                rest = [whole.slice(full)]
        if any(map(len, rest)):
            yield pl.concat(rest)

    def where(self, row: int) -> str:
        """Words for a row, which counts from 0."""
        return f"{self.name}, row {row + 1}{' below the header' if self.is_csv else ''}"

    def other_separator(self) -> str | None:
        """The sign that stands between the cells of its header, where `sep` does not."""
        if len(self.schema) != 1 or not self.is_csv:
            return None
        return next((sign for sign in SEPARATORS if sign in next(iter(self.schema))), None)

    def _scan(self) -> pl.LazyFrame:
        if self.is_csv:
            return pl.scan_csv(self.path, separator=self.sep, infer_schema=False, glob=False)
        return pl.scan_parquet(self.path, glob=False)

    def _parts(self, rows: int) -> Iterator[pl.DataFrame]:
        try:
            yield from self._scan().collect_batches(chunk_size=rows, maintain_order=True)
        except (pl.exceptions.PolarsError, OSError) as error:
            raise self._unread(error) from error

    def _unread(self, error: Exception) -> UserError:
        long = self._first_long_row() if self.is_csv else None
        if long is not None:
            row, cells, header = long
            return UserError(
                f"{self.where(row)}, has {cells} cells, and the header {header}; quote cells that hold {self.sep!r}"
            )
        return UserError(f"{self.name} cannot be read: {reason_of(error)}")

    def _first_long_row(self) -> tuple[int, int, int] | None:
        """The first row with more cells than the header has; its cells, and the header's."""
        try:
            with _opened(self.path) as file:
                lines = csv.reader(file, delimiter=self.sep)
                header = len(next(lines, []))
                return next(((row, len(cells), header) for row, cells in enumerate(lines) if len(cells) > header), None)
        except (OSError, ValueError, EOFError, csv.Error):
            return None


def _opened(path: Path) -> TextIO:
    if path.name.endswith(PACKED):
        return gzip.open(path, "rt", encoding="utf-8", newline="")
    return path.open(encoding="utf-8", newline="")


def check_target(to: Path, schema: dict[str, pl.DataType], names: Iterable[str]) -> None:
    """Check, before anything is predicted, that rows and probabilities can be written.

    Raises:
        UserError: the file is there already or has another ending, csv cannot hold a column, or a name is taken.
    """
    if to.exists():
        raise UserError(f"--to {str(to)!r} is there already; remove it, or name another file")
    if to.suffix not in (".csv", ".parquet"):
        raise UserError(f"--to {str(to)!r} must end in .csv or .parquet")
    if taken := [name for name in names if name in schema]:
        raise UserError(f"the rows have a column {taken[0]!r} already; rename it, or leave it out")
    nested = [name for name, dtype in schema.items() if dtype.is_nested()]
    if to.suffix == ".csv" and nested:
        raise UserError(f"--to {str(to)!r}: csv cannot hold the lists of column {nested[0]!r}; name a .parquet file")


@contextmanager
def writing(to: Path, sep: str = ",") -> Iterator[Any]:
    """Yield a function that writes rows behind those before; the file is there when the block ends without an error."""
    way_out = "name another file with --to"
    with explain_write_errors(to, way_out), replacing(to) as path, path.open("wb") as file:
        writer: list[pq.ParquetWriter] = []
        started = False

        def write(rows: pl.DataFrame) -> None:
            nonlocal started
            if to.suffix == ".csv":
                rows.write_csv(file, include_header=not started, separator=sep)
            else:
                table = rows.to_arrow()
                if not writer:
                    writer.append(pq.ParquetWriter(file, table.schema))
                writer[0].write_table(table)
            started = True

        yield write
        for one in writer:
            one.close()
