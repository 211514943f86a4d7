"""Raw csv or parquet files of a data set: which they are, whether they fit the config, and where a row stands.

`share_embedding`: a column takes the embedding, and the ids, of another one, which must be declared before it.
"""

import gzip
import logging
import re
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from fuxictr_llm.common.errors import UserError, nearest, reason_of, unknown
from fuxictr_llm.host.columns import feature_columns, label_columns

ROW = "fuxictr_llm row"  # no column has that name
UNPARSED = re.compile(r"could not parse `(.*)` as dtype `\w+` at column '(.+)' \(column number", re.DOTALL)
SAMPLE = 2**20  # bytes
PACKED = ".csv.gz"
WITH_VALUES = ("categorical", "sequence")


def raw_files(path: str, data_format: str) -> list[Path]:
    """The files behind a path: itself, or those of a folder.

    Raises:
        UserError: there is none, it has another ending than FuxiCTR wants, or one is empty.
    """
    if any(sign in path for sign in "*?["):
        raise UserError(
            f"data file {path!r}: FuxiCTR takes *, ? and [ in a path for a pattern; rename the folder or file"
        )
    endings = (data_format, PACKED) if data_format == "csv" else (data_format,)
    files = [Path(path)] if path.endswith(endings) else sorted(Path(path).glob(f"*.{data_format}"))
    files = [file for file in files if file.is_file()]
    whole = str(Path(path).absolute())  # a relative one is looked for where the command runs
    if not files and Path(path).exists():
        raise UserError(f"data file {whole!r} must end in .{data_format}, or be a folder of such files")
    if not files:
        raise UserError(f"data file {whole!r} is missing; check train_data, valid_data and test_data in the data set")
    empty = [file for file in files if file.stat().st_size == 0]
    if empty:
        raise UserError(f"data file {str(empty[0].absolute())!r} is empty")
    return files


def pretrained_files(params: Mapping[str, Any]) -> list[Path]:
    """The files of vectors that active columns name as `pretrained_emb`, each once.

    Raises:
        UserError: one is missing.
    """
    named = [col for col in feature_columns(params) if col.get("pretrained_emb") and col.get("active", True)]
    for col in named:
        if not Path(col["pretrained_emb"]).is_file():
            whole = str(Path(col["pretrained_emb"]).absolute())
            raise UserError(f"pretrained_emb {whole!r} of column {col['name']!r} is missing")
    return list(dict.fromkeys(Path(col["pretrained_emb"]) for col in named))


def check_columns(frame: pl.LazyFrame, path: str, params: Mapping[str, Any]) -> None:
    """Check that a split can be read and has the declared columns.

    Raises:
        UserError: it cannot, or lacks one.
    """
    try:
        present = frame.collect_schema().names()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"data file {path!r} cannot be read as {params['data_format']}: {error}") from error
    columns = [*label_columns(params), *(col for col in feature_columns(params) if col.get("active", True))]
    for col in columns:
        # A column with a preprocess step may be derived from others.
        if col["name"] not in present and not col.get("preprocess"):
            hint = nearest(col["name"], present) or ";"
            raise UserError(
                f"data file {path!r} has no column {col['name']!r}{hint} it has: {', '.join(map(str, present[:30]))}"
            )


class RawSplit:
    """The raw files of a split, and where a row of it stands.

    Args:
        files: in the order in which FuxiCTR reads them.
        params: the data set's settings.
    """

    def __init__(self, files: Sequence[Path], params: Mapping[str, Any]):
        self.files, self.params = files, params

    def __len__(self) -> int:
        return sum(map(self._count, self.files))

    def locate(self, row: int) -> tuple[Path, int]:
        """The file of a row of the split, which count from 0, and its place in the file, from 0."""
        for file in self.files:
            count = self._count(file)
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

    def unread(self, error: Exception) -> UserError:
        """The error for files that polars cannot read; of csv it names the value and its place."""
        unparsed = UNPARSED.search(str(error))
        if not (unparsed and self._is_csv):
            return UserError(f"{self.name} cannot be read: {reason_of(error)}")
        text, name = unparsed[1].strip('"'), unparsed[2]
        col = next(col for col in _declared(self.params) if col["name"] == name)
        column = pl.concat([self._scan(file).select(name) for file in self.files]).with_row_index(ROW)
        rows = column.filter(pl.col(name) == text).head(1).collect(engine="streaming")
        where = self.where(rows[ROW].item()) if len(rows) else self.name
        return UserError(f"column {name!r} holds the text {text!r} in {where}; {no_number(col)}")

    @property
    def _is_csv(self) -> bool:
        return self.params["data_format"] == "csv"

    @property
    def short_name(self) -> str:
        """The name of the file, or of the folder of several, for progress."""
        return self.files[0].name if len(self.files) == 1 else self.files[0].parent.name

    @cached_property
    def about_rows(self) -> int:
        """How many rows there are: of csv an estimate by the length of the first ones."""
        most = self.params.get("n_rows")
        counts = [about_rows(file) if self._is_csv else self._count(file) for file in self.files]
        return sum(count if most is None else min(count, most) for count in counts)

    def _count(self, file: Path) -> int:
        return self._scan(file).select(pl.len()).collect(engine="streaming").item()

    def _scan(self, file: Path) -> pl.LazyFrame:
        n_rows = self.params.get("n_rows")
        if not self._is_csv:
            return pl.scan_parquet(file, n_rows=n_rows, glob=False)
        return pl.scan_csv(file, separator=self.params.get("sep") or ",", infer_schema=False, n_rows=n_rows, glob=False)


def about_rows(file: Path) -> int:
    """How many lines a csv file has, by the length of the first ones."""
    with file.open("rb") as opened:
        try:
            first = (gzip.GzipFile(fileobj=opened) if file.name.endswith(PACKED) else opened).read(SAMPLE)
        except (EOFError, zlib.error, gzip.BadGzipFile):  # whoever reads it says so
            return 0
        return file.stat().st_size * first.count(b"\n") // max(opened.tell(), 1)


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


def check_shares(params: Mapping[str, Any]) -> None:
    """Check what the columns of a config share.

    Raises:
        UserError: a column shares the embedding of one that comes later, is inactive, unknown, of a type or dtype
            that has other values, shares another's itself, or is the column itself.
    """
    columns = {col["name"]: col for col in feature_columns(params)}
    places = {name: place for place, name in enumerate(columns)}
    for name, col in columns.items():
        if "share_embedding" not in col or not col.get("active", True):
            continue
        target = col["share_embedding"]
        shares = f"column {name!r} has share_embedding: {target}"
        if col["type"] not in WITH_VALUES:
            raise UserError(f"{shares}, and is of type {col['type']}, which has no values to share; leave the key out")
        if target is None:
            raise UserError(f"column {name!r} has share_embedding: null; leave the key out, or name a column")
        if target == name:
            raise UserError(f"{shares}, which is the column itself; leave the key out, or name another column")
        if target not in columns:
            raise unknown("column", target, columns, f"share_embedding of column {name!r}")
        other = columns[target]
        if not other.get("active", True):
            raise UserError(f"{shares}, which is not active; set active: true for {target!r}, or leave the key out")
        if other["type"] not in WITH_VALUES:
            raise UserError(
                f"{shares}, which is of type {other['type']} and has no values; name a categorical or sequence column"
            )
        if "share_embedding" in other:
            first = _first(columns, target)
            way_out = f"name the first one in both: share_embedding: {first}" if first else "leave the key out of one"
            raise UserError(f"{shares}, which has share_embedding: {other['share_embedding']} itself; {way_out}")
        if places[target] > places[name]:
            raise UserError(f"{shares}, which comes later in feature_cols; put {target!r} in front of {name!r}")
        if not (col.get("preprocess") or other.get("preprocess")) and _are_texts(col) != _are_texts(other):
            number = name if _are_texts(other) else target
            raise UserError(
                f"{shares}, but the values of one are texts and of the other numbers, so that none is the same; "
                f"give {number!r} dtype: str"
            )


def check_shares_used(
    features: Mapping[str, Mapping[str, Any]], built: Mapping[str, Mapping[str, Any]], dataset_id: str
) -> None:
    """Check what the columns that a model is given share, after `use_features` and `feature_specs`.

    Raises:
        UserError: the one that shares comes first, so that it would have an embedding of its own, or feature_specs
            name another column than the data set was built with.
    """
    order = list(features)
    for name, spec in features.items():
        target = spec.get("share_embedding")
        if target is None:
            continue
        if target != built[name].get("share_embedding"):
            raise UserError(
                f"share_embedding: {target} of column {name!r} in feature_specs: data set {dataset_id!r} was built "
                "without it, so the two have other ids; say it in feature_cols"
            )
        if target not in features:
            logging.warning(
                "column %r shares the embedding of %r, which use_features leaves out: it has one of its own",
                name,
                target,
            )
        elif order.index(target) > order.index(name):
            raise UserError(
                f"use_features names {name!r} before {target!r}, whose embedding it shares; put {target!r} in front"
            )


def _first(columns: Mapping[str, Mapping[str, Any]], name: str) -> str | None:
    """The column at the end of a chain of shares; None where it is a circle or ends in an unknown one."""
    seen = set()
    while name in columns and name not in seen:
        if "share_embedding" not in columns[name]:
            return name
        seen.add(name)
        name = columns[name]["share_embedding"]
    return None


def _are_texts(col: Mapping[str, Any]) -> bool:
    return col["type"] == "sequence" or col.get("dtype") in ("str", str)
