"""Vectors of many texts from a language model: each text once, in shards that are stored as soon as they are done.

Shape symbols: `N` texts, `D_llm` width of the language model.
"""

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fuxictr_llm.files import digest_of
from fuxictr_llm.semantics import store
from fuxictr_llm.semantics.model_folder import digest_of_model, find_language_model
from fuxictr_llm.semantics.value_config import ValueVectorsConfig

KIND = "text_vectors"
FILE = "text_vectors.npy"
# A kill loses at most one shard: minutes on two cores.
SHARD = 10_000
# Raise it when the same settings would give other vectors.
VERSION = 1


class TextEncoder:
    """Asks the language model of a config for vectors of texts; loads it only when there is something to ask.

    Args:
        config: names the language model and how it makes a vector.
        gpu: index of the GPU, -1 for the CPU.

    Attributes:
        settings: all that decides about a text's vector, besides the text.
        encoded: how many texts were not in the store.

    Raises:
        UserError: there is no such language model.
    """

    def __init__(self, config: ValueVectorsConfig, gpu: int):
        self.config, self.gpu = config, gpu
        self.folder = find_language_model(config.language_model)
        self.pooling = "mean" if config.llm_pooling == "auto" else config.llm_pooling
        self.settings = {
            "language_model": {"name": config.language_model, "sha256": digest_of_model(self.folder)},
            "device": "gpu" if gpu >= 0 else "cpu",  # they round differently
            "llm_dtype": config.llm_dtype,
            "llm_pooling": self.pooling,
            "llm_max_value_tokens": config.llm_max_value_tokens,
            "version": VERSION,
        }
        self.encoded = 0
        self._model: Any = None

    def __call__(self, values: Sequence[str], head: str = "") -> np.ndarray:
        """Vectors `[N, D_llm]` of the head followed by each value, in float32; zeros where there is no token.

        Values are cut at `llm_max_value_tokens`, the head never is.

        Raises:
            UserError: the language model cannot be loaded, the texts are too long for it, or the store cannot be
                written.
        """
        rows = {value: row for row, value in enumerate(dict.fromkeys(values))}
        texts = list(rows)
        shards = [self._shard(texts[start : start + SHARD], head) for start in range(0, len(texts), SHARD)]
        return np.concatenate([np.load(path) for path in shards])[[rows[value] for value in values]]

    def _shard(self, texts: list[str], head: str) -> Path:
        made_from = {**self.settings, "head": head, "texts_sha256": digest_of(texts)}

        def make() -> tuple[Path, dict[str, Any]]:
            vectors = self._encode(texts, head)
            return store.save(KIND, made_from, FILE, lambda path: _write(path, vectors), {"texts": len(texts)})

        return store.find_or_make(KIND, made_from, FILE, make)[0]

    def _encode(self, texts: list[str], head: str) -> np.ndarray:
        # Heavy libraries are imported only where something has to be asked of a language model.
        from fuxictr_llm.semantics.language_model import load_language_model

        if self._model is None:
            self._model = load_language_model(self.folder, self.config.llm_dtype, self.pooling, self.gpu)
        logging.info("Encoding %d texts with %s", len(texts), self.config.language_model)
        limit = len(self._model.tokens(head)) + self.config.llm_max_value_tokens
        self.encoded += len(texts)
        return self._model.encode((f"{head} {text}" if head else text for text in texts), limit=limit).numpy()


def _write(path: Path, vectors: np.ndarray) -> None:
    content = io.BytesIO()
    np.save(content, vectors)
    path.write_bytes(content.getbuffer())  # numpy does not say why it could not write to a file
