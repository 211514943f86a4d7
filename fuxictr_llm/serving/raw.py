"""Raw rows -> ids and values, as the build of the training data made them: the same fills, functions and vocabularies.

Shape symbols: `N` rows, `L` length of a sequence.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from fuxictr_llm.common.errors import UserError, nearest, reason_of
from fuxictr_llm.data.fills import fill_of, is_list
from fuxictr_llm.data.fitted import LISTS, STORED, Fitted
from fuxictr_llm.data.id_columns import IdColumns
from fuxictr_llm.data.noted_steps import NotedFrame, Steps
from fuxictr_llm.data.raw_checks import first_not_finite, unusable
from fuxictr_llm.host.columns import label_columns
from fuxictr_llm.host.preprocess import FeatureProcessor
from fuxictr_llm.serving.raw_types import typed

Where = Callable[[int], str]  # words for a row, which counts from 0
OF_LISTS = ("sequence", "embedding")


@dataclass
class Counts:
    """What was unusual in raw rows.

    Attributes:
        rows: how many there were.
        unseen: column -> values that training gave no id (in a sequence, each counts), where there are some.
        blank: raw column -> cells that are empty, where there are some.
    """

    rows: int = 0
    unseen: dict[str, int] = field(default_factory=dict)
    blank: dict[str, int] = field(default_factory=dict)

    def add(self, other: "Counts") -> None:
        """Count other rows too."""
        self.rows += other.rows
        for mine, theirs in ((self.unseen, other.unseen), (self.blank, other.blank)):
            for name, count in theirs.items():
                mine[name] = mine.get(name, 0) + count


class RawRows:
    """Turns raw rows into what a model takes; threads can share it.

    Args:
        fitted: of the data set of the model.
        fields: the columns that the model reads.
        host: the class of the data set's processor.

    Attributes:
        needed: the raw columns that rows must have, in the order of the config.

    Raises:
        UserError: the class does something to the raw rows that cannot be repeated here.
    """

    def __init__(self, fitted: Fitted, fields: Sequence[str], host: type[FeatureProcessor]):
        self.fitted, self.fields, self._host = fitted, [*fields], host
        self._known: dict[Any, Any] = {}
        self._forms: dict[tuple[Any, ...], _Form] = {}
        reads = self.form({}).steps(self.fields).reads
        self.needed = [name for name in fitted.stored if name in reads]
        for name in self.needed:
            if self._type(name, {}) is None:
                raise UserError(
                    f"raw column {name!r} was stored as {fitted.stored[name]} in training, which cannot be asked for "
                    "here; store it as text or as numbers there, and train again"
                )

    @property
    def labels(self) -> list[str]:
        """The labels of the data set."""
        return [label["name"] for label in label_columns(self.fitted.settings)]

    @property
    def lists(self) -> list[str]:
        """The raw columns in which a list is one value."""
        return [name for name in self.needed if self.fitted.declared.get(name, {}).get("type") in OF_LISTS]

    def form(self, lists: Mapping[str, pl.DataType]) -> "_Form":
        """How rows are transformed in which the columns of `lists` are lists of that type."""
        key = tuple(sorted((name, str(dtype)) for name, dtype in lists.items()))
        if key not in self._forms:
            types = {name: self._type(name, lists) or pl.String() for name in self.fitted.stored}
            self._forms[key] = _Form(self.fitted.processor(self._host), types, self._known)
        return self._forms[key]

    def made(
        self, rows: pl.DataFrame, names: Sequence[str], where: Where, counts: Counts | None = None
    ) -> pl.DataFrame:
        """Columns of preprocessed rows, as they are before values become ids: labels, or what the model reads.

        Raises:
            UserError: a raw column is missing or holds what it cannot, with its row in the words of `where`.
        """
        lists = self._lists(rows)
        form = self.form(lists)
        steps = form.steps(names)
        self.check_there(rows.columns, steps.reads)
        reads = {name: self._type(name, lists) for name in self.fitted.stored if name in steps.reads}
        raw, blank = typed(rows, {name: dtype or pl.String() for name, dtype in reads.items()}, self.fitted, where)
        if counts is not None:
            counts.add(Counts(len(rows), {}, blank))
        return steps(raw)

    def __call__(self, rows: pl.DataFrame, where: Where) -> tuple[dict[str, np.ndarray], Counts]:
        """Ids and values `[N]` or `[N, L]` by column, and what was unusual.

        Args:
            rows: any order of columns; others than `needed` are left out.
            where: for errors.

        Raises:
            UserError: a column is missing, or a cell holds what its column cannot.
        """
        counts = Counts()
        made = self.made(rows, self.fields, where, counts)
        form = self.form(self._lists(rows))
        if made.is_empty():  # scikit-learn's scalers take no fewer than one row
            return {name: self._nothing(name) for name in self.fields}, counts
        self._check_values(made, where)
        columns = form.ids(self.fields)
        places = columns.prepared(made.lazy()).collect()
        values = columns.transform(places)
        for name in self.fields:
            values[name] = np.asarray(values[name])
            row = first_not_finite(values[name]) if "normalizer" in self.fitted.columns.get(name, {}) else None
            if row is not None:
                raise UserError(
                    f"column {name!r}: its normalizer makes {values[name][row]} of the value in {where(row)}"
                )
        counts.unseen = self._unseen(columns.out_of_vocabulary(values), made)
        return {name: values[name] for name in self.fields}, counts

    def check_there(self, columns: Iterable[str], names: Iterable[str]) -> None:
        """Check that rows have these raw columns.

        Raises:
            UserError: they lack one.
        """
        columns = [*columns]
        missing = [name for name in self.fitted.stored if name in {*names} and name not in columns]
        if missing:
            more = f" (and {len(missing) - 1} more: {', '.join(missing[1:6])})" if len(missing) > 1 else ""
            hint = nearest(missing[0], columns) or ";"
            have = ", ".join(map(str, columns[:30])) or "no column"
            raise UserError(f"the rows have no column {missing[0]!r}{more}{hint} they have: {have}")

    def _lists(self, rows: pl.DataFrame) -> dict[str, pl.DataType]:
        kinds = {name: col["type"] for name, col in self.fitted.declared.items()}
        return {name: dtype for name, dtype in rows.schema.items() if is_list(dtype) and kinds.get(name) in OF_LISTS}

    def _type(self, name: str, lists: Mapping[str, pl.DataType]) -> pl.DataType | None:
        """The type that a raw column is to have before it is preprocessed; None for one that nobody can give."""
        if name in lists:
            return lists[name]
        col, stored = self.fitted.declared.get(name, {}), self.fitted.stored[name]
        if stored == LISTS:
            return pl.String() if col.get("type") == "sequence" else pl.List(pl.Float64)
        is_text = col.get("dtype") == "str" and col["type"] not in ("numeric", "embedding")
        if is_text and not col.get("preprocess"):
            return pl.String()
        return STORED[stored]() if stored in STORED else None

    def _check_values(self, made: pl.DataFrame, where: Where) -> None:
        schema = made.schema
        checks = {name: unusable(self.fitted.declared[name], schema[name]) for name in self.fields}
        found = {name: check for name, check in checks.items() if check is not None}
        if not found:
            return
        wrong = made.select(check.any().alias(name) for name, check in found.items()).row(0, named=True)
        for name in [name for name, is_wrong in wrong.items() if is_wrong]:
            row = made.select(found[name].arg_max()).item()
            shown, fill = made[name][row], fill_of(self.fitted.declared[name])
            if self.fitted.declared[name]["type"] == "embedding":
                width = self.fitted.declared[name]["pretrain_dim"]
                raise UserError(
                    f"column {name!r} holds no vector of {width} finite numbers in {where(row)}; correct it"
                )
            if shown is None:
                raise UserError(f"column {name!r} is empty in {where(row)}, and its fill_na is null; give a number")
            way_out = (
                "correct it" if fill is None else f"correct it, or leave it empty, for which fill_na ({fill}) stands"
            )
            raise UserError(f"column {name!r} holds {shown} in {where(row)}, which no model can take; {way_out}")

    def _nothing(self, name: str) -> np.ndarray:
        """A column of no rows."""
        kind = self.fitted.declared[name]["type"]
        if kind == "sequence":
            return np.zeros((0, self.fitted.columns[name]["max_len"]), dtype=np.int32)
        if kind == "embedding":
            return np.zeros((0, self.fitted.declared[name]["pretrain_dim"]), dtype=np.float32)
        return np.zeros(0, dtype=np.float64 if kind == "numeric" else np.int64)

    def _unseen(self, counts: Mapping[str, int], made: pl.DataFrame) -> dict[str, int]:
        """The counts without empty cells: FuxiCTR gives what stands for them the id of unseen values too."""
        checks = {name: self._is_empty(name, made.schema[name]) for name, count in counts.items() if count}
        asked = {name: check.sum() for name, check in checks.items() if check is not None}
        empty = made.select(**asked).row(0, named=True) if asked else {}
        unseen = {name: count - empty.get(name, 0) for name, count in counts.items()}
        return {name: count for name, count in unseen.items() if count}

    def _is_empty(self, name: str, dtype: pl.DataType) -> pl.Expr | None:
        """Whether a preprocessed value stands for a missing one and has the id of unseen values; None where none has.

        In a sequence such values are padding.
        """
        col, fill = self.fitted.declared[name], fill_of(self.fitted.declared[name])
        if col["type"] == "sequence":
            return None
        value = pl.col(name)
        if fill is None or fill in self.fitted.vocabulary(name) or isinstance(fill, str) != (dtype == pl.String):
            return value.is_null()
        return value.is_null() | (value == fill)


class _Form:
    """How rows of one schema are transformed."""

    def __init__(self, processor: FeatureProcessor, types: Mapping[str, pl.DataType], known: dict[Any, Any]):
        self._processor, self._known = processor, known
        self._steps: dict[tuple[str, ...], Steps] = {}
        self._ids: dict[tuple[str, ...], IdColumns] = {}
        try:
            self._noted = processor.preprocess(NotedFrame(types))
            self._schema = self._noted.collect_schema()
        except UserError:
            raise
        except Exception as error:  # a class of one's own may do anything
            name = type(processor).__name__
            raise UserError(f"preprocess of {name} cannot be repeated for raw rows ({reason_of(error)})") from error
        for col in processor.feature_cols:  # the splitter of lists is another one
            tokenizer = processor.processor_dict.get(f"{col['name']}::tokenizer")
            if col["type"] == "sequence" and tokenizer is not None:
                tokenizer._splitter = col.get("splitter", "^")

    def steps(self, names: Sequence[str]) -> Steps:
        """What makes these columns of raw ones."""
        key = tuple(names)
        if key not in self._steps:
            self._steps[key] = Steps(self._noted.steps, names)
        return self._steps[key]

    def ids(self, names: Sequence[str]) -> IdColumns:
        """What makes ids of these columns."""
        key = tuple(names)
        if key not in self._ids:
            schema = {name: self._schema[name] for name in names}
            self._ids[key] = IdColumns(self._processor, schema, self._known)
        return self._ids[key]
