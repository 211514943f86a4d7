"""Values outside train's vocabulary: which they are, ids of their own, and embeddings from the vectors of their words.

While a model is trained, nothing of this exists for it: an unseen value has the id `__OOV__`, for early stopping too.
Afterwards each table of such a column gets a row a value (see ridge.py), and valid and test are read with the ids of
these rows. Labels of valid and test are used nowhere; of their rows, the words of unseen values are.

Shape symbols: `N` train values of a column that have words, `M` its unseen ones, `S` width of text vectors, `D` width
of a table, `V` ids in training.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch

from fuxictr_llm.common.errors import UserError, unknown
from fuxictr_llm.common.files import read_json
from fuxictr_llm.common.runs import Run, total
from fuxictr_llm.config.language_models import LLM, ColdValuesConfig, RowTextsConfig, value_config
from fuxictr_llm.config.value_tables import ValueTablesConfig
from fuxictr_llm.data.field_words import RESERVED
from fuxictr_llm.data.unseen import RawValues, rows_with_own_ids, train_counts
from fuxictr_llm.llm.texts.sentences import missing_values, owner_of, vocabulary_of
from fuxictr_llm.llm.texts.value_texts import ValueTexts, read_catalog
from fuxictr_llm.llm.vectors import store as controls
from fuxictr_llm.llm.vectors.encoder import TextEncoder
from fuxictr_llm.llm.vectors.ridge import fit_ridge

EXAMPLES = 3


@dataclass(frozen=True)
class ColdColumn:
    """The unseen values of a column that have words.

    Attributes:
        owner: the column whose embedding it is.
        columns: those that share it, the owner first.
        oov_id: what unseen values have without.
        first_id: V, the id of the first of them.
        values: M of them, in the order of their ids.
        without_words: how many have none, and stay out of vocabulary.
        train_ids: of the train values, `[N]`.
        counts: column -> how often each of these occurs in the train split, `[N]`.
        train_vectors, vectors: of the words, `[N, S]` and `[M, S]`.
    """

    owner: str
    columns: tuple[str, ...]
    oov_id: int
    first_id: int
    values: tuple[str, ...]
    without_words: int
    train_ids: np.ndarray
    counts: Mapping[str, np.ndarray]
    train_vectors: np.ndarray
    vectors: np.ndarray

    @property
    def ids(self) -> dict[str, int]:
        """Value -> id."""
        return {value: index for index, value in enumerate(self.values, start=self.first_id)}


@dataclass(frozen=True)
class ColdValues:
    """The unseen values of a run.

    Attributes:
        kind: what they get.
        seed: of the control `shuffled`.
        columns: one for each embedding.
        data: split (valid, test) -> the file in which they have their ids.
    """

    kind: Literal["words", "mean", "shuffled"]
    seed: int
    columns: tuple[ColdColumn, ...]
    data: Mapping[str, str]

    def rows(
        self, column: ColdColumn, weights: np.ndarray, readers: Sequence[str]
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Rows `[M, D]` for a table, and what the record says of them.

        Args:
            column: whose table it is.
            weights: the trained table, `[V, D]`.
            readers: the columns that read it.
        """
        counts = np.sum([column.counts[name] for name in readers], axis=0)
        ridge = fit_ridge(column.train_vectors, weights[column.train_ids], counts)
        if self.kind == "mean":
            return np.tile(ridge.mean, (len(column.values), 1)), {}
        vectors = column.vectors
        if self.kind == "shuffled":
            vectors = controls.shuffled(torch.from_numpy(vectors), self.seed).numpy()
        penalty = None if np.isinf(ridge.penalty) else ridge.penalty  # JSON has no infinity
        return ridge(vectors), {"penalty": penalty, "explained": round(ridge.explained, 4)}


def prepare_cold_values(run: Run, params: Mapping[str, Any]) -> ColdValues | None:
    """The unseen values of a run with `cold_values`; None without the key, and where no unseen value has words.

    Args:
        run: the experiment under way, its columns prepared; a stage is added to it.
        params: its settings, with the raw files.

    Raises:
        UserError: a column or a catalog cannot be used, the raw files are not known, or the language model cannot be
            had.
    """
    if not run.params.get("cold_values"):
        return None
    config = value_config(run.params)
    raw = RawValues(params)
    texts = ValueTexts(run, raw, config.value_texts)
    embeddings = _embeddings(config, run, texts)
    catalogs = _catalogs(config, run, raw, embeddings)
    with run.stages("encode unseen values") as stage:
        encoder = TextEncoder(text_config(config), run.params["gpu"])
        made = [_column(run, raw, texts, catalogs, encoder, *embedding) for embedding in embeddings.items()]
        columns = tuple(column for column in made if column is not None)
        stage |= {"rows": encoder.encoded} if encoder.encoded else {"cached": True}
        stage |= {"made_in": total(encoder.seconds), "tokens_read": total(encoder.tokens)}
        if not columns:
            logging.info("cold_values changes nothing: no value that train lacks has words")
            return None
        data = _rows(run, raw, columns)
    assert config.cold_values is not None
    return ColdValues(config.cold_values, config.control_seed, columns, data)


def text_config(config: ColdValuesConfig | ValueTablesConfig) -> RowTextsConfig:
    """How the texts of values are encoded."""
    return RowTextsConfig(
        language_model=config.language_model,
        llm_dtype=config.llm_dtype,
        llm_pooling=config.llm_pooling,
        llm_max_text_tokens=config.llm_max_text_tokens,
    )


def _embeddings(config: ColdValuesConfig, run: Run, texts: ValueTexts) -> dict[str, tuple[str, ...]]:
    """The embeddings that get rows: owner -> the columns that share it."""
    features = run.feature_map.features
    named = config.cold_fields or [
        *(name for name, spec in features.items() if spec.get("pretrained_emb") and not _is_given(run, name)),
        *(name for name in texts.of_ids if features.get(name, {}).get("type") in ("categorical", "sequence")),
    ]
    embeddings = {}
    for name in named:
        if name not in features:
            raise unknown("column", name, features, "'cold_fields'")
        vocabulary_of(run, name)  # says what is wrong with a column that has none
        owner = owner_of(name, features)
        if _is_given(run, owner):
            if not config.cold_fields:
                continue
            raise UserError(
                f"cold_fields: column {name!r} has vectors of a file (pretrained_emb); add those of unseen values to it"
            )
        sharing = [other for other in features if owner_of(other, features) == owner and other != owner]
        embeddings[owner] = (owner, *sharing)
    if not embeddings:
        raise UserError(
            f"cold_values: no column of data set {run.params['dataset_id']!r} has values in words; name columns with "
            "cold_fields, or ids and what tells them as entities in the field config"
        )
    return embeddings


def _is_given(run: Run, name: str) -> bool:
    """Whether a column has vectors of the user's; those of a language model have a note."""
    given = run.feature_map.features[name].get("pretrained_emb", LLM)
    made = run.notes.get("value_vectors", {}).get("columns", {}).values()
    return given not in (LLM, *(str(Path(file["path"]).absolute()) for file in made))


def _catalogs(
    config: ColdValuesConfig, run: Run, raw: RawValues, embeddings: Mapping[str, Sequence[str]]
) -> dict[str, pl.DataFrame]:
    known = [column for columns in embeddings.values() for column in columns]
    catalogs = {}
    for column, file in (config.cold_catalog or {}).items():
        if column not in known:
            raise unknown("column", column, known, "'cold_catalog' (its values get no rows: see cold_fields)")
        catalogs[column] = read_catalog(file, column, raw.columns, vocabulary_of(run, column)[0])
    return catalogs


def _column(
    run: Run,
    raw: RawValues,
    texts: ValueTexts,
    catalogs: Mapping[str, pl.DataFrame],
    encoder: TextEncoder,
    owner: str,
    columns: tuple[str, ...],
) -> ColdColumn | None:
    vocabulary = whole_vocabulary(run, owner)
    told_by = next((name for name in columns if name in texts.of_ids), owner)
    needed = [told_by, *texts.columns_of(told_by)]
    unseen = unseen_values(run, raw, catalogs, columns, vocabulary)
    splits = [raw.frame(split, dict.fromkeys(needed)) for split in ("valid", "test") if split in raw]
    cold_texts = texts.of(told_by, [*(frame.lazy() for frame in catalogs.values()), *splits], unseen)
    for column in columns:
        if column in catalogs:
            _refuse_without_words(column, catalogs[column][column].to_list(), cold_texts, needed)
    train_texts = texts.of(told_by, [raw.frame("train", dict.fromkeys(needed))], vocabulary_of(run, owner)[0])
    if not cold_texts or not train_texts:
        logging.info("cold_values: of %d unseen values of %r, none has words", len(unseen), owner)
        return None
    values = [value for value in unseen if value in cold_texts]
    train_vectors, vectors = encoder([*train_texts.values()]), encoder([cold_texts[value] for value in values])
    known, told = np.abs(train_vectors).sum(axis=1) > 0, np.abs(vectors).sum(axis=1) > 0
    values = [value for value, has_vector in zip(values, told, strict=True) if has_vector]
    train_ids = np.array([vocabulary[value] for value in train_texts])[known]
    if not values or not len(train_ids):
        return None
    logging.info(
        "cold_values: %d of %d unseen values of %r get embeddings of their own, as %r",
        *(len(values), len(unseen), owner, cold_texts[values[0]]),
    )
    size = run.feature_map.features[owner]["vocab_size"]
    return ColdColumn(
        owner=owner,
        columns=columns,
        oov_id=vocabulary["__OOV__"],
        first_id=size,
        values=tuple(values),
        without_words=len(unseen) - len(values),
        train_ids=train_ids,
        counts={name: train_counts(run.params["train_data"], name, size)[train_ids] for name in columns},
        train_vectors=train_vectors[known],
        vectors=vectors[told],
    )


def whole_vocabulary(run: Run, owner: str) -> dict[str, int]:
    """Value -> id of the whole vocabulary, with FuxiCTR's reserved ones."""
    vocabulary: dict[str, int] = (read_json(run.data_dir / "feature_vocab.json") or {}).get(owner) or {}
    if not {*RESERVED} <= vocabulary.keys():
        raise UserError(f"the vocabulary of column {owner!r} in {str(run.data_dir)!r} has no id of unseen values")
    return vocabulary


def unseen_values(
    run: Run,
    raw: RawValues,
    catalogs: Mapping[str, pl.DataFrame],
    columns: Sequence[str],
    vocabulary: Mapping[str, int],
) -> list[str]:
    """The values of valid, test and catalogs that the vocabulary lacks, sorted."""
    found: set[str] = set()
    for column in columns:
        for split in ("valid", "test"):
            found |= {*raw.distinct(split, column)} if split in raw else set()
        for catalog in catalogs.values():
            if column in catalog.columns:
                split_at = raw.splitters.get(column)
                cells = catalog[column].to_list()
                found |= {value for cell in cells for value in (cell.split(split_at) if split_at else [cell])}
        found -= {*missing_values(run, column)}
    return sorted(found - vocabulary.keys() - {""})


def _refuse_without_words(column: str, values: Sequence[str], texts: Mapping[str, str], told_by: Sequence[str]) -> None:
    without = [value for value in values if value not in texts]
    if without:
        raise UserError(
            f"cold_catalog of {column!r}: {len(without)} of its {len(values)} values have no words "
            f"({', '.join(map(repr, without[:EXAMPLES]))}); give the file the columns that tell them: "
            f"{', '.join(dict.fromkeys(told_by))}"
        )


def _rows(run: Run, raw: RawValues, columns: Sequence[ColdColumn]) -> dict[str, str]:
    """Split -> its rows, with the ids of unseen values."""
    cold = {name: column.ids for column in columns for name in column.columns}
    vocabularies = {name: whole_vocabulary(run, column.owner) for column in columns for name in column.columns}
    splits = [split for split in ("valid", "test") if run.params.get(f"{split}_data")]
    built = {split: run.params[f"{split}_data"] for split in splits}
    return {split: str(rows_with_own_ids(raw, split, path, vocabularies, cold)) for split, path in built.items()}
