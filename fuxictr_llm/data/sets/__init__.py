"""How the original files of single data sets become tables.

Here is what they share: the files are found in a folder, read line by line, and split in the order of time.
"""

import gzip
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import polars as pl

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.progress import BYTES, Progress

AFFECTS_RESULTS = False  # see common/code_digest.py

LINES = 1000  # between two looks at how far a file is read
SPLIT_SEED = 2024


def find_originals(folder: str | Path, names: tuple[str, ...]) -> dict[str, Path]:
    """The files of those names in a folder, as they are or packed (`.gz`); those that are not there are left out."""
    files = {}
    for name in names:
        candidates = [path for path in (Path(folder, name), Path(folder, f"{name}.gz")) if path.is_file()]
        if candidates:
            files[name] = candidates[0]
    return files


def numbered_lines(path: Path, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """The lines of a text file with their numbers from 1 on; empty ones are skipped.

    Raises:
        UserError: the file is packed and cut or damaged, or a line is not in that encoding.
    """
    number = 0
    try:
        with path.open("rb") as raw, Progress(f"reading {path.name}", path.stat().st_size, BYTES) as progress:
            lines = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
            for number, line in enumerate(lines, 1):
                if not number % LINES:
                    progress.update(raw.tell() - progress.done)
                if line.strip():
                    yield number, line.decode(encoding).rstrip("\r\n")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{str(path)!r} is cut or damaged: {reason_of(error)}; download it again") from error
    except UnicodeDecodeError:
        damaged_line(path, number, f"it is not {encoding}")


def damaged_line(path: Path, number: int, problem: str) -> NoReturn:
    """Raise the UserError that names a file, a line and what is wrong with it."""
    raise UserError(f"{str(path)!r}, line {number}: {problem}; download the file again, or put the line right")


def read_double_colons(
    path: Path, columns: Sequence[str], numbers: Collection[str], encoding: str = "utf-8"
) -> pl.DataFrame:
    """The lines of a file, parted by `::`; the columns in `numbers` become whole numbers, the others text.

    Raises:
        UserError: a line has other parts, or the file is damaged.
    """
    values: list[list] = [[] for _ in columns]
    for number, line in numbered_lines(path, encoding):
        parts = line.split("::")
        if len(parts) != len(columns):
            damaged_line(path, number, f"it must be {'::'.join(columns)}")
        for name, part, column in zip(columns, parts, values, strict=True):
            if name in numbers and not (part.isdecimal() and len(part) <= 15):
                damaged_line(path, number, f"{name} must be a whole number (got {part!r})")
            column.append(int(part) if name in numbers else part)
    schema = {name: pl.Int64 if name in numbers else pl.String for name in columns}
    return pl.DataFrame(dict(zip(columns, values, strict=True)), schema)


def time_words(column: str, unit: Literal["s", "ms"], how: str) -> pl.Expr:
    """A time as a field: its weekday (`bucketed`), or the number itself (`raw`).

    In an 8:1:1 split in the order of time no raw time of test stands in train. A weekday does, while the months
    of MovieLens-1M, for one, do not all.

    Args:
        column: times counted from 1970.
        unit: of them, seconds or milliseconds.
        how: `bucketed` or `raw`.
    """
    return pl.col(column).cast(pl.String) if how == "raw" else pl.from_epoch(column, unit).dt.strftime("%A")


def split_order(split: str, times: np.ndarray) -> np.ndarray:
    """The rows in the order in which `tenths` cuts them: `time` (stable), or `random` with a fixed seed."""
    if split == "time":
        return np.argsort(times, kind="stable")
    return np.random.default_rng(SPLIT_SEED).permutation(len(times))


def tenths(rows: int, what: str) -> dict[str, slice]:
    """Which rows are train, valid and test: 8:1:1, in their order.

    Raises:
        UserError: there are less than ten, so that a part would be empty.
    """
    if rows < 10:
        raise UserError(f"{what} has {rows} rows that can be used; 8:1:1 needs at least ten")
    tenth = rows // 10
    return {
        "train": slice(0, rows - 2 * tenth),
        "valid": slice(rows - 2 * tenth, rows - tenth),
        "test": slice(rows - tenth, rows),
    }
