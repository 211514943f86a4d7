"""Raw values of a data set, and built splits in which values outside train's vocabulary have ids of their own.

FuxiCTR gives one id, `__OOV__`, to all values that the vocabulary of train lacks. Which value a row of valid or test
had is known from the raw files alone: they are read again, and each built id is compared with what its value gives.

Shape symbols: `N` rows, `L` length of a sequence, `V` ids of a vocabulary.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from fuxictr_llm.common import cache
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of, digest_of_file
from fuxictr_llm.data.build import files_of_splits
from fuxictr_llm.data.field_words import collecting
from fuxictr_llm.data.in_memory import data_files, read_columns, read_slices
from fuxictr_llm.data.processors import find_processor
from fuxictr_llm.host.preprocess import Tokenizer

KIND = "rows_of_unseen_values"
SLICE_ROWS = 100_000
# Raise it when the same settings would give other files.
VERSION = 1


class RawValues:
    """The columns of a data set's raw files after FuxiCTR's preprocessing, as text.

    Args:
        params: the settings with the raw files, as the config has them.
        asked_by: a key or a method, for error messages.

    Attributes:
        columns: name -> how it is declared.
        splitters: of each sequence, what stands between its values.
        files: split -> its raw files.

    Raises:
        UserError: the data set is a built one, whose values are not known, or a file is missing.
    """

    def __init__(self, params: Mapping[str, Any], asked_by: str = "cold_values"):
        self.asked_by = asked_by
        if params.get("user_info") or params.get("item_info"):
            raise UserError(f"{asked_by} does not know the values of long sequences (user_info); leave it out")
        self.files = files_of_splits(params)
        if not self.files:
            raise UserError(
                f"{asked_by} needs the raw files of data set {params['dataset_id']!r}: a built one "
                f"(data_format: {params['data_format']}) does not say which values its valid and test rows had"
            )
        processor: Any = collecting(find_processor(params))(**params)
        settings = {
            "data_format": params["data_format"],
            "sep": params.get("sep") or ",",
            "n_rows": params.get("n_rows"),
        }
        read = {split: processor.read_data(params[f"{split}_data"], **settings) for split in self.files}
        self._frames = {split: processor.preprocess(frame) for split, frame in read.items()}
        self.columns = {col["name"]: col for col in processor.feature_cols}
        sequences = {name: col for name, col in self.columns.items() if col["type"] == "sequence"}
        self.splitters = {name: col.get("splitter", "^") for name, col in sequences.items()}

    def __contains__(self, split: str) -> bool:
        return split in self._frames

    def frame(self, split: str, names: Iterable[str]) -> pl.LazyFrame:
        """Columns of a split, as text; null and missing values are empty."""
        return self._frames[split].select(pl.col(name).cast(pl.String).fill_null("") for name in names)

    def distinct(self, split: str, name: str) -> list[str]:
        """The values that occur in a column of a split; of a sequence, its elements."""
        column = pl.col(name).str.split(self.splitters[name]).explode() if name in self.splitters else pl.col(name)
        values = self.frame(split, [name]).select(column.unique()).collect(engine="streaming")
        return sorted(value for value in values[name].to_list() if value)


def train_counts(train_data: str, column: str, size: int) -> np.ndarray:
    """How often each of V ids occurs in a column of the built train split, int64 `[V]`."""
    counts = np.zeros(size, dtype=np.int64)
    for part in read_slices(train_data, [column], SLICE_ROWS):
        counts += np.bincount(part[column].ravel(), minlength=size)[:size]
    return counts


def rows_with_own_ids(
    raw: RawValues,
    split: str,
    built: str,
    vocabularies: Mapping[str, Mapping[str, int]],
    cold: Mapping[str, Mapping[str, int]],
) -> Path:
    """A copy of a built split, from the cache, in which unseen values have ids of their own.

    Args:
        raw: of the data set.
        built: the built split.
        vocabularies: column -> its values of train and FuxiCTR's reserved names -> id.
        cold: column -> unseen values -> id.

    Raises:
        UserError: the built rows are not those of the raw files.
    """
    files = data_files(built)
    made_from = {
        "split": split,
        "built": [digest_of_file(path) for path in files],
        "raw": [digest_of_file(path) for path in raw.files[split]],
        "vocabularies": {name: digest_of(vocabularies[name]) for name in cold},
        "cold": {name: digest_of(ids) for name, ids in cold.items()},
        "code": cache.code_of(__name__),
        "version": VERSION,
    }
    file_name = f"{split}.parquet"

    def write(path: Path) -> None:
        _write(path, files, {name: _encoded(raw, split, files, name, vocabularies[name], cold[name]) for name in cold})

    def make() -> tuple[Path, dict[str, Any]]:
        return cache.save(KIND, made_from, file_name, write, {})

    return cache.find_or_make(KIND, made_from, file_name, make)[0]


def _encoded(
    raw: RawValues,
    split: str,
    files: Sequence[Path],
    name: str,
    vocabulary: Mapping[str, int],
    cold: Mapping[str, int],
) -> np.ndarray:
    """The new ids of a column, `[N]` or `[N, L]`."""
    before = read_columns([*files], [name])[name]
    values = raw.frame(split, [name]).collect()[name].to_list()
    if not _same(before, _ids(values, name, raw, vocabulary, before)):
        raise UserError(
            f"{raw.asked_by}: the rows of built data {str(files[0])!r} are not those of {str(raw.files[split][0])!r} "
            f"(column {name!r} differs), so that nobody knows which values they had; remove the built data set"
        )
    return _ids(values, name, raw, {**vocabulary, **cold}, before).astype(before.dtype)


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def _ids(values: list[str], name: str, raw: RawValues, vocabulary: Mapping[str, int], before: np.ndarray) -> np.ndarray:
    """As FuxiCTR's tokenizer gives them."""
    column = raw.columns[name]
    if column["type"] != "sequence":
        tokenizer = Tokenizer()
        tokenizer.vocab = dict(vocabulary)
        return np.array(tokenizer.encode_category(values))
    padding, missing = column.get("padding", "post"), str(column.get("fill_na", ""))
    tokenizer = Tokenizer(na_value=missing, splitter=raw.splitters[name], max_len=before.shape[1], padding=padding)
    tokenizer.vocab = dict(vocabulary)
    return tokenizer.encode_sequence(values)


def _write(path: Path, files: Sequence[Path], columns: Mapping[str, np.ndarray]) -> None:
    """Write built files as one, some columns replaced."""
    start, writer = 0, None
    for file in files:
        for part in pq.ParquetFile(file).iter_batches(SLICE_ROWS):
            table = pa.Table.from_batches([part])
            for name, ids in columns.items():
                place, kind = table.schema.get_field_index(name), table.schema.field(name).type
                table = table.set_column(place, name, _arrow(ids[start : start + len(table)], kind))
            writer = writer or pq.ParquetWriter(path, table.schema)
            writer.write_table(table)
            start += len(table)
    if writer is not None:
        writer.close()


def _arrow(ids: np.ndarray, kind: pa.DataType) -> pa.Array:
    if ids.ndim == 1:
        return pa.array(ids, type=kind)
    return pa.array(list(ids), type=kind)
