"""What is said of a row: `<field words> is <value>.` for each field, and longer texts of its own values.

Shape symbols: `W` ids of a column (a sequence has as many as it is long).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fuxictr_llm.data.raw import feature_columns
from fuxictr_llm.errors import UserError
from fuxictr_llm.semantics.vocabulary import missing_values, train_ids, words_of


class Sentence(Protocol):
    """Something to say of a row, by its ids of one column."""

    column: str

    def of(self, ids: np.ndarray) -> str:
        """The sentence for ids `[W]`; empty where the value is missing or was not seen in train."""


@dataclass(frozen=True)
class ValueSentence:
    """`<words> is <value>.`; several values of a sequence are joined with commas.

    Attributes:
        values: id -> value in words; an id beyond them, and one without words, is not told.
    """

    column: str
    words: str
    values: Sequence[str]

    def of(self, ids: np.ndarray) -> str:
        told = [self.values[index] for index in ids if 0 <= index < len(self.values)]
        told = [value for value in told if value]
        return f"{self.words} is {', '.join(told)}." if told else ""


@dataclass(frozen=True)
class NumberSentence:
    """`<words> is <number>.`; ids are the bits of a float32.

    Attributes:
        missing: numbers that stand for missing ones.
    """

    column: str
    words: str
    missing: frozenset[float] = frozenset()

    def of(self, ids: np.ndarray) -> str:
        number = ids.astype(np.int32).view(np.float32)[0]
        told = np.isfinite(number) and float(number) not in self.missing
        return f"{self.words} is {as_written(number)}." if told else ""


@dataclass(frozen=True)
class SideSentence:
    """The longer text of a value."""

    column: str
    texts: Mapping[int, str]

    def of(self, ids: np.ndarray) -> str:
        return " ".join(self.texts[index] for index in ids.tolist() if index in self.texts)


def sentence_of(run: Any, column: str, words: str) -> Sentence:
    """How a column is told.

    Raises:
        UserError: it is of a type that cannot be told, or normalized.
    """
    if run.feature_map.features[column]["type"] == "numeric":
        declared = feature_columns(run.params) if run.params.get("feature_cols") else []  # as it was built
        if any(told["name"] == column and told.get("normalizer") for told in declared):
            raise UserError(f"column {column!r} is normalized, so its numbers cannot be told; name others: text_fields")
        missing = frozenset(float(np.float32(value)) for value in missing_values(run, column))
        return NumberSentence(column, words, missing)
    ids, oov_idx = train_ids(run, column)
    in_words = words_of(run, column, list(ids))
    values = [""] * oov_idx
    for value, index in ids.items():
        values[index] = in_words.get(value, value).strip()
    return ValueSentence(column, words, values)


def as_written(number: np.float32) -> str:
    """A number as one would write it: 3, 0.25, 1200000."""
    return np.format_float_positional(number, trim="-")
