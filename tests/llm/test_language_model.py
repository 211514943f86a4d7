"""Pooling and framing; models found by folder."""

import shutil

import pytest
import torch
from transformers import RobertaConfig, RobertaModel, T5Config, T5ForConditionalGeneration

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.llm.language_model import length_batches, load_language_model, pool
from fuxictr_llm.llm.model_files import digest_of_model, find_language_model


def test_pooling_ignores_padding():
    hidden = torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    assert torch.allclose(pool(hidden, mask, "mean")[0], hidden[0, :2].mean(dim=0))
    assert torch.equal(pool(hidden, mask, "last"), torch.stack([hidden[0, 1], hidden[1, 3]]))


def test_a_vector_does_not_depend_on_its_batch(model):
    texts = ["red", "city of the shop in Malmö", "grey"]
    together = model.encode(texts)
    alone = torch.cat([model.encode([text]) for text in texts])
    assert together.shape == (3, 16) and together.dtype == torch.float32
    assert torch.allclose(together, alone, atol=1e-5)


def test_batches_hold_texts_of_like_length_up_to_a_number_of_tokens():
    lengths = [3, 0, 9, 2, 3, 2, 2, 20]
    batches = length_batches(lengths, tokens=9)
    assert batches == [[7], [2], [0, 4, 3], [5, 6]]  # the longest first, alone where too long; none for an empty text
    assert length_batches([], 9) == length_batches([0], 9) == []


def test_causal_models_pool_the_last_token_and_encoders_the_mean(model, tiny_encoder):
    assert (model.pooling, model.before, model.after) == ("last", [0], [])
    encoder = load_language_model(tiny_encoder, "float32", "auto", gpu=-1)
    assert (encoder.pooling, encoder.before, encoder.after) == ("mean", [0], [1])
    assert encoder.encode(["red"]).shape == (1, 16)


def test_the_encoder_of_an_encoder_decoder_is_asked(tiny_encoder, tmp_path):
    folder = shutil.copytree(tiny_encoder, tmp_path / "t5")
    (folder / "model.safetensors").unlink()
    config = T5Config(vocab_size=400, d_model=16, d_ff=32, d_kv=8, num_layers=1, num_heads=2, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    assert load_language_model(folder, "float32", "auto", gpu=-1).encode(["red", "blue"]).shape == (2, 16)


def test_positions_that_count_from_the_padding_on(tiny_encoder, tmp_path):
    folder = shutil.copytree(tiny_encoder, tmp_path / "roberta")
    config = RobertaConfig(
        vocab_size=400, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=20, pad_token_id=5,
    )  # fmt: skip
    RobertaModel(config).save_pretrained(folder)
    model = load_language_model(folder, "float32", "auto", gpu=-1)
    assert model.positions == 14 and model.encode(["red red red red"], limit=12).shape == (1, 16)
    with pytest.raises(UserError, match="a text of [0-9]+ tokens does not fit into the 14 positions"):
        model.encode(["red " * 40])


def test_folders_that_are_no_models_are_named(tmp_path, tiny_llm):
    assert find_language_model(str(tiny_llm)) == tiny_llm
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="is no language-model folder: it needs config.json"):
        find_language_model(str(tmp_path / "empty"))
    broken = shutil.copytree(tiny_llm, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"garbage")
    with pytest.raises(UserError, match="cannot be loaded"):
        load_language_model(find_language_model(str(broken)), "float32", "auto", gpu=-1)
    assert digest_of_model(broken) != digest_of_model(tiny_llm)


def test_unknown_names_say_what_is_known(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="unknown language model 'SmolLM2-135M-Instrct'; did you mean 'SmolLM2-135M-I"):
        find_language_model("SmolLM2-135M-Instrct")
