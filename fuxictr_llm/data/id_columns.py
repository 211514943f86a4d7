"""Ids of raw values, looked up a column at a time: the same as those of FuxiCTR's `transform`, which goes by the cell.

A processor with a `transform` of its own, and a column of values that cannot be looked up exactly here, go FuxiCTR's
way.

Shape symbols: `N` rows of a slice, `L` length of a sequence.
"""

from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any, cast

import numpy as np
import polars as pl

from fuxictr_llm.host.preprocess import FeatureProcessor, Tokenizer

PAD, OOV = "__PAD__", "__OOV__"
EXACT = 2**53  # whole numbers up to it are floats without rounding


class IdColumns:
    """Transforms slices of a preprocessed frame with a fitted processor.

    Args:
        processor: after `fit`.
        schema: of the frame.
        known: vocabularies that were made for other frames, and will be for this one; columns that share an embedding
            have one.
    """

    def __init__(self, processor: FeatureProcessor, schema: Mapping[str, pl.DataType], known: dict[Any, "_Texts"]):
        self._processor = processor
        self._texts: dict[str, _Texts] = {}
        self._numbers: dict[str, _Numbers] = {}
        self._sequences: dict[str, _Texts] = {}
        if type(processor).transform is not FeatureProcessor.transform:
            return
        for name, spec in processor.feature_map.features.items():
            tokenizer, dtype = processor.processor_dict.get(f"{name}::tokenizer"), schema.get(name)
            if type(tokenizer) is not Tokenizer or dtype is None:
                continue
            is_sequence = spec["type"] == "sequence"
            if dtype == pl.String and _are_texts(tokenizer.vocab):
                if is_sequence and not (tokenizer._splitter and tokenizer.max_len > 0):
                    continue
                key = id(tokenizer.vocab), tokenizer._na_value if is_sequence else None
                if key not in known:
                    known[key] = _Texts(tokenizer.vocab, padding=key[1])
                (self._sequences if is_sequence else self._texts)[name] = known[key]
            elif not is_sequence and _are_numbers(tokenizer.vocab, dtype):
                self._numbers[name] = _Numbers(tokenizer.vocab, dtype)

    def prepared(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        """The frame whose columns of single texts are places in their vocabularies: polars finds them in parallel."""
        return frame.with_columns(texts.places(name) for name, texts in self._texts.items())

    def transform(self, rows: pl.DataFrame) -> dict[str, np.ndarray]:
        """Ids and values of a slice of the prepared frame, `[N]` or `[N, L]`; columns in its order, then more."""
        made: dict[str, Any] = {name: texts.ids(rows[name]) for name, texts in self._texts.items()}
        made |= {name: numbers.ids(rows[name]) for name, numbers in self._numbers.items()}
        for name, texts in self._sequences.items():
            if not rows[name].null_count():  # FuxiCTR fails on what no text is
                made[name] = _padded(rows[name], texts, self._processor.processor_dict[f"{name}::tokenizer"])
        others = {column.name: column.to_numpy() for column in rows if column.name not in made}
        made |= self._processor.transform(others)
        return {name: made[name] for name in [*rows.columns, *made]}

    def out_of_vocabulary(self, made: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Column -> how many of the ids in a transformed slice are those of values that it does not know."""
        known = {f"{name}::tokenizer": name for name, spec in self._processor.feature_map.features.items()}
        tokenizers = {
            known[key]: tokenizer for key, tokenizer in self._processor.processor_dict.items() if key in known
        }
        return {
            name: int(np.count_nonzero(np.asarray(made[name]) == tokenizer.vocab[OOV]))
            for name, tokenizer in tokenizers.items()
        }


class _Texts:
    """A vocabulary of texts.

    Args:
        vocab: text -> id.
        padding: the text that has the id of padding, whatever the vocabulary says.
    """

    def __init__(self, vocab: Mapping[str, int], padding: Any = None):
        ids = {**vocab, padding: vocab[PAD]} if isinstance(padding, str) else vocab
        self._categories = pl.Enum(pl.Series([*ids], dtype=pl.String))
        self._ids = np.array([*ids.values(), vocab[OOV]], dtype=np.int64)
        self._places: dict[str, pl.Expr] = {}

    def places(self, name: str) -> pl.Expr:
        """Where the texts of a column stand in the vocabulary; behind its end, where they do not."""
        if name not in self._places:  # polars reads all categories for each expression that is made
            places = pl.col(name).cast(self._categories, strict=False).to_physical().cast(pl.UInt32)
            self._places[name] = places.fill_null(len(self._ids) - 1)
        return self._places[name]

    def ids(self, places: pl.Series) -> np.ndarray:
        """The ids of such places."""
        return self._ids[places.to_numpy()]


class _Numbers:
    """A vocabulary of numbers, all of them whole or all floats."""

    def __init__(self, vocab: Mapping[Any, int], dtype: pl.DataType):
        self._type, self._oov = np.int64 if dtype.is_integer() else np.float64, vocab[OOV]
        known = {value: index for value, index in vocab.items() if not isinstance(value, str)}
        values = np.array([*known], dtype=self._type)
        order = np.argsort(values)
        self._values, self._ids = values[order], np.array([*known.values()], dtype=np.int64)[order]

    def ids(self, column: pl.Series) -> np.ndarray:
        """The ids of numbers; a missing one, and NaN, is out of the vocabulary."""
        has_nulls = column.null_count() > 0
        values = (column.fill_null(0) if has_nulls else column).to_numpy().astype(self._type)
        places = np.searchsorted(self._values, values).clip(max=len(self._values) - 1)
        known = self._values[places] == values
        if has_nulls:
            known &= column.is_not_null().to_numpy()
        return np.where(known, self._ids[places], self._oov)


def _padded(column: pl.Series, texts: _Texts, tokenizer: Tokenizer) -> np.ndarray:
    """Ids of the parts of each text `[N, L]`, cut and padded at one side."""
    parts = column.str.split(tokenizer._splitter)
    places = parts.list.explode(empty_as_null=False).to_frame("part").select(texts.places("part"))
    lengths, width = parts.list.len().to_numpy().astype(np.int64), tokenizer.max_len
    row = np.repeat(np.arange(len(column)), lengths)
    place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    if tokenizer.padding == "pre":
        place += width - lengths[row]
    kept = (place >= 0) & (place < width)
    padded = np.full((len(column), width), tokenizer.vocab[PAD], dtype=np.int32)
    padded[row[kept], place[kept]] = texts.ids(places.to_series())[kept]
    return padded


def _are_texts(values: Iterable[Any]) -> bool:
    return all(isinstance(value, str) for value in values)


def _are_numbers(values: Iterable[Any], dtype: pl.DataType) -> bool:
    """Whether a column of that type can hold these values, and they can be compared exactly."""
    numbers = [value for value in values if value not in (PAD, OOV)]
    if not numbers or dtype == pl.UInt64 or isinstance(dtype, pl.Int128):
        return False
    if dtype.is_integer():
        return all(isinstance(value, Integral) and abs(cast(int, value)) < 2**63 for value in numbers)
    return dtype.is_float() and all(isinstance(value, Real) and _is_exact(value) for value in numbers)


def _is_exact(value: Real) -> bool:
    return not isinstance(value, Integral) or abs(cast(int, value)) <= EXACT
