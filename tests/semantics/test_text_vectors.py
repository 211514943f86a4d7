"""Texts are encoded once, in shards that outlive a kill; values are cut, and nothing else."""

from pathlib import Path

import numpy as np
import pytest

from fuxictr_llm.errors import UserError
from fuxictr_llm.semantics import vector_store
from fuxictr_llm.semantics.language_model import LanguageModel, load_language_model
from fuxictr_llm.semantics.text_vectors import TextEncoder
from fuxictr_llm.semantics.value_config import ValueVectorsConfig


def test_a_killed_encoding_loses_one_shard_at_most(llm, monkeypatch):
    monkeypatch.setattr(vector_store, "SHARD", 4)
    encode, asked = LanguageModel.encode, []

    def interrupted(self, texts, **kwargs):
        asked.append(list(texts))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return encode(self, asked[-1], **kwargs)

    monkeypatch.setattr(LanguageModel, "encode", interrupted)
    texts = [f"text {number}" for number in range(11)]
    config = ValueVectorsConfig(**llm)
    with pytest.raises(KeyboardInterrupt):
        TextEncoder(config, gpu=-1)(texts)
    assert [len(part) for part in asked] == [4, 4, 3]
    again = TextEncoder(config, gpu=-1)
    vectors = again(texts)
    assert again.encoded == 3 and asked[3] == texts[8:]
    monkeypatch.undo()
    whole = encode(load_language_model(Path(llm["language_model"]), "float32", "mean", gpu=-1), texts)
    assert np.allclose(vectors, whole.numpy(), atol=1e-5)


def test_equal_texts_are_encoded_once(llm):
    encoder = TextEncoder(ValueVectorsConfig(**llm), gpu=-1)
    vectors = encoder(["red", "grey", "red"])
    assert encoder.encoded == 2 and np.array_equal(vectors[0], vectors[2])
    assert not np.allclose(vectors[0], vectors[1])


def test_long_values_are_cut_and_heads_are_not(llm, monkeypatch):
    lengths, batch = [], LanguageModel.batch

    def noted(self, rows):
        lengths.extend(map(len, rows))
        return batch(self, rows)

    monkeypatch.setattr(LanguageModel, "batch", noted)
    encoder = TextEncoder(ValueVectorsConfig(**llm, llm_max_value_tokens=2), gpu=-1)
    encoder(["red green blue black white " * 30, "r"], head="a head of some words:")
    head = len(encoder._model.tokens("a head of some words:"))
    assert max(lengths) == 1 + head + 2 and min(lengths) > head
    encoder._model.model.config.max_position_embeddings = head
    with pytest.raises(UserError, match=r"does not fit into the [0-9]+ positions .* lower llm_max_value_tokens"):
        encoder(["blue"], head="a head of some words:")
