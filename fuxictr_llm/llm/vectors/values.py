"""Vectors of feature values, in the form of FuxiCTR's `pretrained_emb`: vocabulary -> texts -> vectors -> file.

Shape symbols: `N` train values of a column, `D_llm` width of the language model, `D` width of the vectors in a file.
"""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from sklearn.decomposition import PCA

from fuxictr_llm.common import cache as store
from fuxictr_llm.common.errors import UserError, unknown
from fuxictr_llm.common.files import digest_of, merged
from fuxictr_llm.common.runs import Run, total
from fuxictr_llm.config.language_models import LLM, ValueVectorsConfig, value_config
from fuxictr_llm.llm.catalog import load_catalog
from fuxictr_llm.llm.texts.sentences import owner_of, vocabulary_of, words_of
from fuxictr_llm.llm.threads import in_one_thread
from fuxictr_llm.llm.vectors import store as controls
from fuxictr_llm.llm.vectors.encoder import TextEncoder
from fuxictr_llm.llm.vectors.given import note_matches

KIND = "value_vectors"
MOST_KEY_BYTES = 2**31
TEXTS = "values of the train split"
# Raise it when the same settings would give other files.
VERSION = 1


@dataclass(frozen=True)
class ColumnValues:
    """The train values of a column.

    Attributes:
        keys: as in FuxiCTR's vocabulary.
        words: the same values in words.
        head: the words of the column, put before each value; empty without.
        oov_idx: the id of all other values.
    """

    keys: tuple[str, ...]
    words: tuple[str, ...]
    head: str
    oov_idx: int


def prepare_value_vectors(run: Run, settings: Mapping[str, Any]) -> dict[str, Any]:
    """`feature_specs` in which each column with `pretrained_emb: llm` has a file, made where it is not in the store.

    Columns with a file of the user's get the other keys that FuxiCTR needs, and the log says how many values have a
    vector in it. Without columns of either kind nothing changes.

    Args:
        run: the experiment under way; its stages and notes are added to.
        settings: the experiment's own; a method may have put files in the place of some of the run's.

    Raises:
        UserError: a column has no vocabulary, two that share an embedding ask for different things, a file cannot be
            used or has no vector of any value, or the language model cannot be had.
    """
    specs = [*_of_language_model(run, settings), *_of_given_files(run)]
    return {"feature_specs": [*(run.params.get("feature_specs") or []), *specs]} if specs else {}


def _of_language_model(run: Run, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    columns = run.feature_map.features
    asked = {name: spec for name, spec in columns.items() if spec.get("pretrained_emb") == LLM}
    if not asked:
        return []
    config = value_config(settings)
    specs: dict[str, dict[str, Any]] = {}
    for name, file in make_value_vectors(config, run, asked).items():
        spec = {
            "pretrained_emb": str(Path(file["path"]).absolute()),
            "pretrain_dim": file["dim"],
            "pretrain_usage": asked[name].get("pretrain_usage", config.value_usage),
            "freeze_emb": asked[name].get("freeze_emb", config.value_freeze),
            "oov_idx": file["oov_idx"],
        }
        for target in (name, owner_of(name, columns)):
            given = columns[target].get("pretrained_emb", LLM)
            if given != LLM or specs.setdefault(target, spec) != spec:
                raise UserError(f"{name!r} and {target!r} share an embedding: ask for the same vectors for both")
    resolved = [{"name": name, **spec} for name, spec in specs.items()]
    logging.info("feature_specs with files, as FuxiCTR's own scripts take them: %s", resolved)
    return resolved


def _of_given_files(run: Run) -> list[dict[str, Any]]:
    """FuxiCTR takes the id of unseen values out of the feature map of a data set that was built without the file."""
    specs = []
    for name, spec in run.feature_map.features.items():
        if spec.get("pretrained_emb", LLM) == LLM:
            continue
        owner = owner_of(name, run.feature_map.features)
        if not run.feature_map.features[owner].get("pretrained_emb"):
            raise UserError(f"{name!r} has the embedding of {owner!r}: give {spec['pretrained_emb']!r} to both")
        if name not in run.notes.get("value_vectors", {}).get("columns", {}):  # those made here have all values
            note_matches(run, name)
        if not {"freeze_emb", "oov_idx"} <= spec.keys():
            known = {"freeze_emb": True, "oov_idx": vocabulary_of(run, name)[1]} | spec
            specs.append({"name": name, "freeze_emb": known["freeze_emb"], "oov_idx": known["oov_idx"]})
    return specs


def make_value_vectors(
    config: ValueVectorsConfig, run: Run, names: Iterable[str], file_format: str = "npz"
) -> dict[str, dict[str, Any]]:
    """A file for each of the columns, with `key` (N values) and `value` (float32 `[N, D]`).

    Args:
        config: how the vectors are made.
        run: the experiment under way; its stages and notes are added to.
        names: columns of the data set.
        file_format: `npz`, or `h5`, which FuxiCTR reads only where all values are ASCII.

    Returns:
        For each column `path`, `sha256`, `dim` (D), `values` (N of the `train_values`), `oov_idx` and how much of the
        variance is kept.

    Raises:
        UserError: a column is unknown or has no vocabulary, a value is not ASCII in an h5 file, or the language model
            cannot be had.
    """
    values = _train_values(run, names, described=config.value_text == "described")
    if file_format == "h5":
        for name, column in values.items():
            if strange := next((key for key in column.keys if not key.isascii()), None):
                raise UserError(
                    f"column {name!r} has the value {strange!r}: FuxiCTR reads no such h5; use --format npz"
                )
    files = {}
    with run.stages("encode values") as stage:
        encoder = TextEncoder(config, run.params["gpu"])
        for name, column in values.items():
            width = _width(config, run.feature_map, name)
            path, manifest = _file(config, encoder, name, column, width, file_format)
            facts = {key: value for key, value in manifest.items() if key != "made_from"}
            files[name] = {"path": str(path), **facts, "train_values": len(column.keys), "oov_idx": column.oov_idx}
            count = facts["values"], len(column.keys)
            logging.info("Vectors of %d of the %d train values of %r: %s", *count, name, path)
        stage |= {"rows": encoder.encoded} if encoder.encoded else {"cached": True}
        stage["made_in"] = total(file.get("seconds") for file in files.values())
        stage["tokens_read"] = total(file.get("tokens_read") for file in files.values())
    run.notes["value_vectors"] = {
        "source": config.field_vectors,
        "texts": TEXTS,
        "language_model": encoder.settings["language_model"],
        "columns": files,
    }
    return files


def _train_values(run: Run, names: Iterable[str], described: bool) -> dict[str, ColumnValues]:
    """The train values of columns, or of the columns whose embeddings they share, in words where there are some."""
    columns = run.feature_map.features
    catalog = load_catalog(run.feature_map, run.data_dir, run.params.get("field_config"))
    fields = {field.name: field.text for field in catalog.fields}
    values_of = {}
    for name in names:
        if name not in columns:
            raise unknown("column", name, columns, f"data set {run.params['dataset_id']!r}")
        keys, oov_idx = vocabulary_of(run, name)
        if not keys:
            raise UserError(f"column {name!r} lacks a value in every train row, so there is nothing to make vectors of")
        if not can_be_read(keys):
            raise UserError(
                f"column {name!r}: FuxiCTR would read its {len(keys):,} values at the length of the longest, "
                f"{max(map(len, keys)):,} characters; shorten them in the raw files, or leave the column out"
            )
        in_words = words_of(run, name, keys)
        head = f"{fields[owner_of(name, columns)]}:" if described else ""
        values_of[name] = ColumnValues(keys, tuple(in_words.get(key, key) for key in keys), head, oov_idx)
    return values_of


def can_be_read(keys: Sequence[str]) -> bool:
    """Whether FuxiCTR, which reads all keys at the length of the longest, needs no more than 2 GiB for them."""
    return len(keys) * max(map(len, keys), default=0) * 4 <= MOST_KEY_BYTES


def _width(config: ValueVectorsConfig, feature_map: Any, name: str) -> int | None:
    """D; None where the language model's own width is asked for."""
    spec = feature_map.features[name]
    width = spec.get("pretrain_dim") or config.value_dim or spec.get("embedding_dim") or feature_map.default_emb_dim
    return None if width == "full" else width


def _file(
    config: ValueVectorsConfig,
    encoder: TextEncoder,
    name: str,
    column: ColumnValues,
    width: int | None,
    file_format: str,
) -> tuple[Path, dict[str, Any]]:
    """The column's file and manifest, from the store where it is there."""
    placebo = {} if config.field_vectors == LLM else {"placebo": config.field_vectors, "seed": config.control_seed}
    keys = {
        "head": column.head,
        "keys_sha256": digest_of(column.keys),
        "words_sha256": digest_of(column.words),
        "dim": width,
        "scale": config.value_scale,
        "format": file_format,
        "code": store.code_of(__name__),
        "files_version": VERSION,
    }
    made_from = merged(encoder.settings, keys, placebo)
    file_name = f"value_vectors.{file_format}"

    def make() -> tuple[Path, dict[str, Any]]:
        vectors = encoder(column.words, column.head)
        known = np.abs(vectors).sum(axis=1) > 0
        if not known.any():
            raise UserError(f"column {name!r}: the language model has no token for any of its values")
        if not known.all():
            examples = ", ".join(repr(column.keys[place]) for place in np.flatnonzero(~known)[:3])
            logging.warning("%d values of %r have no token and no vector: %s", (~known).sum(), name, examples)
        vectors, facts = shaped(vectors[known], width, config.value_scale)
        if placebo:
            placed = {"random": controls.random_like, "shuffled": controls.shuffled}[config.field_vectors]
            vectors = placed(torch.from_numpy(vectors), config.control_seed).numpy()
        keys = np.array(column.keys)[known]
        work = {"seconds": encoder.seconds[-1], "tokens_read": encoder.tokens[-1]}
        facts = {"values": len(keys), "dim": vectors.shape[1], **work, **facts}
        write = {"npz": _write_npz, "h5": _write_h5}[file_format]
        return store.save(KIND, made_from, file_name, lambda path: write(path, keys, vectors), facts)

    return store.find_or_make(KIND, made_from, file_name, make)


def shaped(vectors: np.ndarray, width: int | None, scale: float | None) -> tuple[np.ndarray, dict[str, Any]]:
    """`[N, D_llm] -> [N, D]`: reduced by a PCA fitted on the rows, without their mean, at the root mean square `scale`.

    Args:
        width: D; None, or D_llm itself, leaves the vectors unreduced. Fewer components than D (there are at most
            N - 1) are filled up with zeros.
        scale: None leaves scale and, unreduced, the mean as they are.

    Returns:
        The vectors, and the share of their variance that a PCA kept.
    """
    facts = {}
    width = width or vectors.shape[1]
    reduce = width != vectors.shape[1]
    if reduce or scale is not None:
        vectors = vectors - vectors.mean(axis=0)
    if reduce:
        components = min(width, len(vectors) - 1, vectors.shape[1])
        reduced = np.zeros((len(vectors), width), dtype=np.float32)
        if components:
            # Exact, so no seed; fast for many rows; scikit-learn fixes the signs.
            pca = PCA(components, svd_solver="covariance_eigh")
            with in_one_thread():
                reduced[:, :components] = pca.fit_transform(vectors)
            if pca.explained_variance_.sum() > 0:  # equal rows have none
                facts["explained_variance"] = round(float(pca.explained_variance_ratio_.sum()), 4)
        vectors = reduced
    size = float(np.sqrt(np.mean(np.square(vectors))))
    if scale is not None and size > 0:
        vectors = vectors * np.float32(scale / size)
    return np.ascontiguousarray(vectors, dtype=np.float32), facts


def _write_npz(path: Path, keys: np.ndarray, vectors: np.ndarray) -> None:
    np.savez(path, key=keys, value=vectors)


def _write_h5(path: Path, keys: np.ndarray, vectors: np.ndarray) -> None:
    with h5py.File(path, "w") as file:
        file.create_dataset("key", data=keys.astype("S"))
        file.create_dataset("value", data=vectors)
