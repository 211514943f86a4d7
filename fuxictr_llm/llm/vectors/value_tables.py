"""Tables of frozen vectors `[V + M, W]` by the ids of columns: those of train values, and of values that train lacks.

In the built files of valid and test, unseen values get ids of their own behind the V of training; what has no text,
padding and `__OOV__` have zeros. Labels are used nowhere.

Shape symbols: `V` ids of a column in training, `M` values that train lacks, `W` width of the language model.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fuxictr_llm.common import cache
from fuxictr_llm.common.errors import UserError, reason_of, unknown
from fuxictr_llm.common.files import digest_of
from fuxictr_llm.common.runs import Run, total
from fuxictr_llm.config.value_tables import ValueTablesConfig
from fuxictr_llm.data.unseen import RawValues, rows_with_own_ids
from fuxictr_llm.llm.texts.sentences import owner_of, vocabulary_of
from fuxictr_llm.llm.vectors import store as controls
from fuxictr_llm.llm.vectors.cold import text_config, unseen_values, whole_vocabulary
from fuxictr_llm.llm.vectors.encoder import TextEncoder

KIND, FILE = "value_tables", "tables.safetensors"
# Raise it when the same settings would give other tables.
VERSION = 1
# Column, rows as text, values -> value -> text, of those that have one.
TextsOf = Callable[[str, Sequence[pl.LazyFrame], Sequence[str]], dict[str, str]]


@dataclass(frozen=True)
class ValueTables:
    """Tables that were made for a run.

    Attributes:
        path: their file.
        data: `valid_data` and `test_data` -> the file in which unseen values have their ids.
    """

    path: Path
    data: dict[str, str]


@dataclass(frozen=True)
class _Column:
    """The texts of a column: of train values and of others, by id, in the order of their ids."""

    name: str
    size: int
    oov_id: int
    texts: dict[int, str]
    unseen: dict[int, str]
    unseen_ids: dict[str, int]
    without: int  # train values that have no text


def make_value_tables(
    config: ValueTablesConfig, run: Run, raw: RawValues, columns: Mapping[str, Sequence[str]], texts_of: TextsOf
) -> ValueTables:
    """Tables for columns of ids, from the store where they are there.

    Args:
        config: how texts are encoded, and which placebo is made of their vectors.
        run: the experiment under way; the stage `encode` and a note are added to it.
        raw: the raw values of its data set.
        columns: column -> those that its texts are made of.
        texts_of: gives the texts of its values.

    Raises:
        UserError: a column has no vocabulary or no value with a text, or the language model cannot be had.
    """
    told = [_texts(run, raw, name, needed, texts_of) for name, needed in columns.items()]
    with run.stages("encode") as stage:
        encoder = TextEncoder(text_config(config), run.params["gpu"])
        made_from = _made_from(config, encoder, told)

        def make() -> tuple[Path, dict[str, Any]]:
            tables = {column.name: _table(column, encoder, config) for column in told}
            ids = {column.name: [column.size, column.oov_id] for column in told}
            facts = {"seconds": total(encoder.seconds), "tokens_read": total(encoder.tokens)}
            return cache.save(KIND, made_from, FILE, lambda path: write_value_tables(path, tables, ids), facts)

        path, manifest = cache.find_or_make(KIND, made_from, FILE, make)
        stage |= {"rows": encoder.encoded} if encoder.encoded else {"cached": True}
        stage |= {"made_in": manifest.get("seconds"), "tokens_read": manifest.get("tokens_read")}
    run.notes["value_tables"] = {
        "path": str(path),
        "sha256": manifest["sha256"],
        "source": config.field_vectors,
        "columns": {
            column.name: {"values": len(column.texts), "unseen": len(column.unseen), "without_text": column.without}
            for column in told
        },
    }
    return ValueTables(path, _rows_with_own_ids(run, raw, told))


def write_value_tables(path: Path, tables: Mapping[str, Tensor], ids: Mapping[str, Sequence[int]]) -> None:
    """Write column -> its table, and column -> V and the id of unseen values."""
    save_file(dict(tables), path, {"ids": json.dumps(ids)})


def read_value_tables(file: str) -> tuple[dict[str, Tensor], dict[str, tuple[int, int]]]:
    """What `write_value_tables` wrote.

    Raises:
        UserError: the file is missing, or none of tables.
    """
    with _opened(file) as (opened, ids):
        return {name: opened.get_tensor(name) for name in ids}, {name: (size, oov) for name, (size, oov) in ids.items()}


def check_value_tables(file: str, features: Mapping[str, Any]) -> dict[str, int]:
    """Column -> the width of its table's vectors.

    Raises:
        UserError: the file is none of tables, or they are of other columns than the data set's.
    """
    with _opened(file) as (opened, ids):
        for name, (size, _) in ids.items():
            if name not in features:
                raise unknown("column", name, features, f"value_tables {file!r}")
            here = features[name].get("vocab_size")
            if here != size:
                raise UserError(
                    f"value_tables {file!r} is of a data set with {size} ids of {name!r}, this one has {here}; leave "
                    "the key out: the run makes them"
                )
        return {name: opened.get_slice(name).get_shape()[1] for name in ids}


@contextlib.contextmanager
def _opened(file: str) -> Iterator[tuple[Any, dict[str, list[int]]]]:
    try:
        with safe_open(file, "pt") as opened:
            yield opened, json.loads((opened.metadata() or {})["ids"])
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(
            f"value_tables {file!r} cannot be read as tables of vectors ({reason_of(error)}); leave the key out: the "
            "run makes them"
        ) from error


def _texts(run: Run, raw: RawValues, name: str, needed: Sequence[str], texts_of: TextsOf) -> _Column:
    features = run.feature_map.features
    values, _ = vocabulary_of(run, name)
    vocabulary, size = whole_vocabulary(run, owner_of(name, features)), features[name]["vocab_size"]
    names = dict.fromkeys([name, *needed])
    train = texts_of(name, [raw.frame("train", names)], values)
    if not train:
        raise UserError(f"no value of column {name!r} has a text; name other columns, or give texts with value_texts")
    # Groups of rows that are ranked together must be those of other runs.
    unseen = unseen_values(run, raw, {}, [name], vocabulary) if name != run.params.get("group_id") else []
    splits = [raw.frame(split, names) for split in ("valid", "test") if split in raw]
    texts = texts_of(name, splits, unseen) if unseen else {}
    unseen_ids = {value: size + place for place, value in enumerate(texts)}
    if without := len(values) - len(train):
        message = "%d of %d values of column %r have no text: their vectors are zeros"
        logging.warning(message, without, len(values), name)
    logging.info("Column %r: %d values with texts, as %r", name, len(train), next(iter(train.values())))
    return _Column(
        name,
        size,
        vocabulary["__OOV__"],
        {vocabulary[value]: text for value, text in train.items()},
        {unseen_ids[value]: text for value, text in texts.items()},
        unseen_ids,
        without,
    )


def _made_from(config: ValueTablesConfig, encoder: TextEncoder, told: Sequence[_Column]) -> dict[str, Any]:
    placebo = {} if config.field_vectors == "llm" else {"placebo": config.field_vectors, "seed": config.control_seed}
    texts = {
        column.name: digest_of([column.size, column.oov_id, *(list(each.items()) for each in _both(column))])
        for column in told
    }
    code = {"code": cache.code_of(__name__), "version": VERSION}
    return {"encoder": encoder.settings, "texts": texts, **placebo, **code}


def _both(column: _Column) -> tuple[dict[int, str], dict[int, str]]:
    return column.texts, column.unseen


def _table(column: _Column, encoder: TextEncoder, config: ValueTablesConfig) -> Tensor:
    """`[V + M, W]`: each dimension has mean 0 and deviation 1 over the train values that have a text."""
    parts = [torch.from_numpy(encoder([*texts.values()])) for texts in _both(column) if texts]
    ids = torch.tensor([index for texts in _both(column) for index in texts])
    vectors, known = torch.cat(parts), torch.arange(len(ids)) < len(column.texts)
    real = vectors.abs().sum(dim=1) > 0  # the language model read a token
    if config.field_vectors != "llm":
        placed = {"random": controls.random_like, "shuffled": controls.shuffled}[config.field_vectors]
        vectors = placed(vectors, config.control_seed).nan_to_num()
    deviation, mean = torch.std_mean(vectors[known & real], dim=0, correction=0)
    scale = torch.where(deviation > 1e-6 * (1 + mean.abs()), 1 / deviation, 0)  # a constant dimension says nothing
    table = torch.zeros(column.size + len(column.unseen), vectors.shape[1])
    table[ids] = (vectors - mean) * scale * real.unsqueeze(1)
    return table


def _rows_with_own_ids(run: Run, raw: RawValues, told: Sequence[_Column]) -> dict[str, str]:
    cold = {column.name: column.unseen_ids for column in told if column.unseen_ids}
    if not cold:
        return {}
    features = run.feature_map.features
    vocabularies = {name: whole_vocabulary(run, owner_of(name, features)) for name in cold}
    splits = [split for split in ("valid", "test") if run.params.get(f"{split}_data")]
    built = {f"{split}_data": run.params[f"{split}_data"] for split in splits}
    return {
        key: str(rows_with_own_ids(raw, key.removesuffix("_data"), path, vocabularies, cold))
        for key, path in built.items()
    }
