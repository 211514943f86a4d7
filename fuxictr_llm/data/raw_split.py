"""The raw files of a split, and words for a row of them."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from fuxictr_llm.data.raw import feature_columns, label_columns
from fuxictr_llm.errors import UserError, reason_of

ROW = "fuxictr_llm row"  # no column has that name
UNPARSED = re.compile(r"could not parse `(.*)` as dtype `\w+` at column '(.+)' \(column number", re.DOTALL)


class RawSplit:
    """The raw files of a split, and where a row of it stands.

    Args:
        files: in the order in which FuxiCTR reads them.
        params: the data set's settings.
    """

    def __init__(self, files: Sequence[Path], params: Mapping[str, Any]):
        self.files, self.params = files, params

    def locate(self, row: int) -> tuple[Path, int]:
        """The file of a row of the split, which count from 0, and its place in the file, from 0."""
        for file in self.files:
            count = self._scan(file).select(pl.len()).collect().item()
            if row < count:
                return file, row
            row -= count
        return self.files[-1], row

    def value(self, row: int, name: str) -> Any:
        """What a raw column holds in a row: of csv the text as it stands there. None of a column that is made."""
        file, place = self.locate(row)
        frame = self._scan(file)
        return frame.slice(place, 1).select(name).collect().item() if name in frame.collect_schema() else None

    def row_in_words(self, row: int) -> str:
        """The place of a row in its file, counted from 1."""
        return f"row {self.locate(row)[1] + 1}{' below the header' if self._is_csv else ''}"

    def where(self, row: int, count: int = 1) -> str:
        """Words for a row and its file, and for how many others are like it."""
        more = f" and in {count - 1} more" if count > 1 else ""
        return f"data file {str(self.locate(row)[0])!r}, {self.row_in_words(row)}{more}"

    @property
    def name(self) -> str:
        """Words for the files."""
        return f"data file {str(self.files[0] if len(self.files) == 1 else self.files[0].parent)!r}"

    def unread(self, error: pl.exceptions.PolarsError) -> UserError:
        """What is said of an error in reading: of a value of csv that is no number where it stands."""
        found = UNPARSED.search(str(error))
        if not (found and self._is_csv):
            return UserError(f"{self.name} cannot be read: {reason_of(error)}")
        text, name = found[1].strip('"'), found[2]
        col = next(col for col in _declared(self.params) if col["name"] == name)
        rows = pl.concat([self._scan(file).select(name) for file in self.files]).with_row_index(ROW)
        rows = rows.filter(pl.col(name) == text).head(1).collect(engine="streaming")
        where = self.where(rows[ROW].item()) if len(rows) else self.name
        return UserError(f"column {name!r} holds the text {text!r} in {where}; {no_number(col)}")

    @property
    def _is_csv(self) -> bool:
        return self.params["data_format"] == "csv"

    def _scan(self, file: Path) -> pl.LazyFrame:
        n_rows = self.params.get("n_rows")
        if not self._is_csv:
            return pl.scan_parquet(file, n_rows=n_rows, glob=False)
        return pl.scan_csv(file, separator=self.params.get("sep") or ",", infer_schema=False, n_rows=n_rows, glob=False)


def _declared(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*({"type": "label", **label} for label in label_columns(params)), *feature_columns(params)]


def no_number(col: Mapping[str, Any], stored: bool = False) -> str:
    """What to do about a text where a column should hold numbers.

    Args:
        col: the column, or a label, of type `label`.
        stored: all of its values are texts, not one alone that cannot be read.
    """
    kind, dtype = col["type"], getattr(col.get("dtype"), "__name__", col.get("dtype"))
    if kind == "label":
        return "a label is 0 or 1"
    if kind == "embedding":
        return "vectors are lists of numbers, which parquet can hold and csv cannot"
    if kind == "sequence":
        return "a sequence in csv is a text: give it dtype: str"
    if stored:
        return "it is numeric: store it as numbers" + ("; in csv give it dtype: float" if dtype == "str" else "")
    return f"its dtype is {dtype}; correct it, or leave it empty"
