"""The texts of single values, of values outside train's vocabulary too: from the words of raw rows, not from ids.

The id of an entity is told by the entity's other columns (`title of the movie is Toy Story. genre of the movie is
Comedy.`), any other value by itself (`title of the movie is Toy Story.`). What `value_texts` says of it comes last.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from fuxictr_llm.common.errors import UserError, reason_of, unknown
from fuxictr_llm.common.runs import Run
from fuxictr_llm.data.unseen import RawValues
from fuxictr_llm.llm.catalog import load_catalog
from fuxictr_llm.llm.texts.sentences import ENDS, as_written, missing_values, side_texts, words_of


class ValueTexts:
    """Makes the texts of values of a run's columns.

    Args:
        run: the experiment under way.
        raw: the raw values of its data set.
        tables: `value_texts`.

    Raises:
        UserError: a table is of no column, or cannot be read.
    """

    def __init__(self, run: Run, raw: RawValues, tables: Mapping[str, Mapping[str, str]] | None = None):
        self._run, self._raw, self._features = run, raw, run.feature_map.features
        catalog = load_catalog(run.feature_map, run.data_dir, run.params.get("field_config"))
        self._words = {field.name: field.text for field in catalog.fields}
        self._missing: dict[str, set[str]] = {}
        # The columns that tell an id.
        self.of_ids = {
            str(entity.id): columns
            for entity in catalog.entities
            if entity.id and (columns := [name for name in entity.text if name != entity.id and name in raw.columns])
        }
        for column in tables or {}:
            if column not in self._features:
                raise unknown("column", column, self._features, "'value_texts'")
        self._sides = {column: side_texts(column, table) for column, table in (tables or {}).items()}

    def columns_of(self, name: str) -> list[str]:
        """The columns that the texts of a column's values are made of."""
        return self.of_ids.get(name, [name])

    def of(self, name: str, frames: Sequence[pl.LazyFrame], values: Iterable[str]) -> dict[str, str]:
        """Value -> text, for those of the values that have words.

        Args:
            name: their column.
            frames: rows as text, in the order in which they are asked for the columns that tell an id; the first row
                of an id counts. They may lack columns.
        """
        values = list(dict.fromkeys(values))
        texts = self._of_rows(name, frames, values) if name in self.of_ids else self._of_themselves(name, values)
        sides = self.sides_of(name)
        for value in values:
            if side := sides.get(value):
                side = side if side.endswith(ENDS) else f"{side}."
                texts[value] = f"{texts.get(value, '')} {side}".strip()
        return {value: texts[value] for value in values if texts.get(value)}

    def sides_of(self, name: str) -> Mapping[str, str]:
        """Value -> what `value_texts` says of it."""
        return self._sides.get(name, {})

    def _of_themselves(self, name: str, values: Sequence[str]) -> dict[str, str]:
        known = [value for value in values if value and value not in self._missing_of(name)]
        in_words = words_of(self._run, name, known)
        return {value: f"{self._head(name)} is {in_words.get(value, value).strip()}." for value in known}

    def _of_rows(self, name: str, frames: Sequence[pl.LazyFrame], values: Sequence[str]) -> dict[str, str]:
        wanted, texts = pl.LazyFrame({name: values}, schema={name: pl.String}), dict[str, str]()
        for frame in frames:
            present = frame.collect_schema().names()
            columns = [column for column in self.of_ids[name] if column in present]
            if name not in present or not columns:
                continue
            asked = frame.select(name, *columns).join(wanted, on=name, how="semi")
            rows = asked.unique(subset=name, keep="first", maintain_order=True).collect()
            sentences = [self._sentences(column, rows[column].to_list()) for column in columns]
            for place, value in enumerate(rows[name].to_list()):
                text = " ".join(filter(None, (of_column[place] for of_column in sentences)))
                if text:
                    texts.setdefault(value, text)
        return texts

    def _sentences(self, name: str, cells: Sequence[str]) -> list[str]:
        """What a text says of a column, for each of its cells; empty where there is nothing to say."""
        head, kind = self._head(name), self._raw.columns[name]["type"]
        if kind == "numeric":
            missing = {float(value) for value in self._missing_of(name)}
            numbers = [float(cell) if cell and np.isfinite(float(cell)) else None for cell in cells]
            shown = (None if value in missing else value for value in numbers)
            return ["" if value is None else f"{head} is {as_written(np.float32(value))}." for value in shown]
        splitter = self._raw.splitters.get(name)
        elements = [cell.split(splitter) if splitter else [cell] for cell in cells]
        distinct = sorted({element for of_cell in elements for element in of_cell} - {""} - self._missing_of(name))
        in_words = words_of(self._run, name, distinct) if name in self._features else {}
        words = {element: in_words.get(element, element).strip() for element in distinct}
        told = [", ".join(filter(None, (words.get(element) for element in of_cell))) for of_cell in elements]
        return [f"{head} is {text}." if text else "" for text in told]

    def _head(self, name: str) -> str:
        return self._words.get(name) or name.replace("_", " ")

    def _missing_of(self, name: str) -> set[str]:
        """Also of a column that `use_features` leaves out, or of type meta: there nothing is known."""
        if name not in self._missing:
            known = name in self._features and self._features[name]["type"] != "meta"
            self._missing[name] = set(missing_values(self._run, name)) if known else set()
        return self._missing[name]


def read_catalog(file: str, column: str, columns: Mapping[str, Any], vocabulary: Iterable[str]) -> pl.DataFrame:
    """The rows of a file of `cold_catalog`, as text, with those of its columns that the data set has.

    Args:
        file: csv or parquet.
        column: of the values that will come.
        columns: those of the data set.
        vocabulary: the values that train has.

    Raises:
        UserError: the file is missing or cannot be read, lacks the column, has text in a numeric one, or has a value
            twice, an empty one, or one that train has.
    """
    where = f"cold_catalog of {column!r}: {file!r}"
    frame = _read(file, where)
    if column not in frame.columns:
        raise unknown("column", column, frame.columns, where)
    frame = pl.DataFrame([_as_text(frame[name], where) for name in frame.columns if name in columns])
    for name in frame.columns:
        if columns[name]["type"] == "numeric":
            _refuse_text(frame[name], where)
    values = frame[column]
    if (values == "").any():
        row = int((values == "").arg_max() or 0)
        raise UserError(f"{where} has no {column} in row {row + 1}; give it one, or leave the row out")
    twice = values.filter(values.is_duplicated())
    if len(twice):
        raise UserError(f"{where} has {twice[0]!r} more than once; leave one row of it")
    known = set(vocabulary)
    if seen := [value for value in values if value in known]:
        more = f", as {len(seen) - 1} more," if len(seen) > 1 else ""
        raise UserError(
            f"{where} has {seen[0]!r}, which{more} train has already, with an embedding that it learnt; the catalog is "
            "for values that will come: leave these rows out"
        )
    return frame


def _as_text(cells: pl.Series, where: str) -> pl.Series:
    try:
        return cells.cast(pl.String).fill_null("")
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"{where} has {cells.dtype} in column {cells.name!r}; write its values as text, as in the raw files"
        ) from error


def _refuse_text(cells: pl.Series, where: str) -> None:
    wrong = (cells != "") & cells.cast(pl.Float64, strict=False).is_null()
    if wrong.any():
        row = int(wrong.arg_max() or 0)
        raise UserError(
            f"{where} has {cells[row]!r} in row {row + 1} of the numeric column {cells.name!r}; give it a number, or "
            "leave the cell empty"
        )


def _read(file: str, where: str) -> pl.DataFrame:
    path = Path(file)
    if path.suffix not in (".csv", ".parquet"):
        raise UserError(f"{where} must end in .csv or .parquet")
    if not path.is_file():
        raise UserError(f"{where} is missing")
    try:
        return pl.read_csv(path, infer_schema=False) if path.suffix == ".csv" else pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise UserError(f"{where} cannot be read: {reason_of(error)}") from error
