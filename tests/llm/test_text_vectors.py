"""Texts are encoded once, in shards that outlive a kill; values are cut, and nothing else."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from fuxictr_llm.common import progress
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.language_models import RowTextsConfig, ValueVectorsConfig
from fuxictr_llm.llm import language_model
from fuxictr_llm.llm.language_model import LanguageModel, load_language_model
from fuxictr_llm.llm.vectors import store as vector_store
from fuxictr_llm.llm.vectors.encoder import TextEncoder


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


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".npy"}


@pytest.mark.parametrize("harm", ["none", "torn", "flipped", "other"])
def test_a_killed_shard_goes_on_behind_its_last_batch_with_the_same_bits(llm, monkeypatch, tmp_path, harm):
    """Killed in a shard's middle, whatever became of what it kept: the bits are those of an uninterrupted run."""
    monkeypatch.setattr(language_model, "CPU_TOKENS", 24)
    monkeypatch.setattr(vector_store, "SHARD", 20)
    texts = [" ".join(["red", "grey", "blue", "a"][: number % 5]) + f" {number}" for number in range(30)]
    embed, count, stop_at = LanguageModel.embed, [], 9

    def counted(self, batch, model=None):
        count.append(len(batch["input_ids"]))
        if len(count) == stop_at:
            raise KeyboardInterrupt
        return embed(self, batch, model)

    monkeypatch.setattr(LanguageModel, "embed", counted)
    config = ValueVectorsConfig(**llm)
    with pytest.raises(KeyboardInterrupt):
        TextEncoder(config, gpu=-1).store_of(texts)
    (part,) = (tmp_path / "cache").rglob("*.part")
    kept, before = part.read_bytes(), len(count) - 1
    harmed = {"torn": kept[:-7], "flipped": kept[:30] + bytes([kept[30] ^ 1]) + kept[31:], "other": b"\0" * 999}
    part.write_bytes(harmed.get(harm, kept))
    count.clear()
    stop_at = 0
    resumed = TextEncoder(config, gpu=-1).store_of(texts)
    again, first = len(count), contents(resumed.folder)
    assert len(first) == 2 and not list(resumed.folder.glob("*.part"))
    shutil.rmtree(resumed.folder)
    count.clear()
    assert contents(TextEncoder(config, gpu=-1).store_of(texts).folder) == first
    # Of the 10 batches, 6 were of the first shard, and 2 of the second were kept.
    assert before == 8 and again == 10 - {"none": 8, "torn": 7}.get(harm, 6)


def test_progress_shows_rate_and_time_left(llm, monkeypatch, capsys):
    monkeypatch.setattr(progress, "DELAY", 0)
    monkeypatch.setattr(vector_store, "SHARD", 4)
    TextEncoder(ValueVectorsConfig(**llm), gpu=-1).store_of([f"text {number}" for number in range(9)])
    last = capsys.readouterr().err.rstrip().splitlines()[-1]
    assert last.startswith("encoding texts: 100% 9/9")
    assert last.endswith("texts/s]")


@pytest.mark.parametrize(
    ("config", "key"), [(ValueVectorsConfig, "llm_max_value_tokens"), (RowTextsConfig, "llm_max_text_tokens")]
)
def test_texts_that_are_cut_are_counted_with_the_key_that_cuts_them(llm, monkeypatch, caplog, config, key):
    monkeypatch.setattr(vector_store, "SHARD", 2)
    texts = ["red", "red green blue black white", "grey grey grey grey grey", "blue", "white green black grey red a"]
    for limit, cut in ((4, 3), (4, 3), (99, 0)):  # made, found again, and long enough
        caplog.clear()
        assert TextEncoder(config(**llm, **{key: limit}), gpu=-1).store_of(texts).cut == cut
        message = f"3 of 5 texts are longer than 4 tokens and are cut; raise {key} to have them read whole"
        assert caplog.messages.count(message) == bool(cut)


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
