"""Packed rows hold the tokens of whole prompts and give their vectors; only values are cut; one framing everywhere."""

import pytest
import torch
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoConfig,
    GPTNeoForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.llm.language_model import load_language_model
from fuxictr_llm.model_zoo.LLaCTR.prompt_batches import (
    IGNORED,
    PADDING,
    ROW_TOKENS,
    SHARED,
    PromptBatches,
    attention_mask,
    pack,
)
from fuxictr_llm.model_zoo.LLaCTR.prompts import Prompt, common_prefix, sample_prompts
from support import CATALOG

PROMPTS = sample_prompts(CATALOG, 6, 0, 0)[0]
either_way = pytest.mark.parametrize("packed", [True, False])


def texts_of(batch, packed):
    """The token ids of each text that the model gets, put together from rows."""
    if not packed:
        lengths = batch["attention_mask"].sum(dim=1)
        return [row[:length].tolist() for row, length in zip(batch["input_ids"], lengths, strict=True)]
    shared = batch["input_ids"][0][batch["segments"][0] == SHARED].tolist()
    flat, behind = batch["input_ids"].flatten(), batch["sees_shared"].flatten()
    return [(shared if behind[start] else []) + flat[start:stop].tolist() for start, stop in batch["places"].tolist()]


@either_way
def test_tuning_and_export_frame_texts_alike(model, packed):
    batches = PromptBatches(model, CATALOG, max_value_tokens=5, packed=packed)
    expected = [model.tokenizer(field.text, add_special_tokens=True)["input_ids"] for field in CATALOG.fields]
    assert batches.field_rows == expected
    texts = texts_of(batches.collate(PROMPTS), packed)
    for row, prompt in zip(texts[: len(PROMPTS)], PROMPTS, strict=True):
        assert model.tokenizer.decode(row).startswith(f"<s>{common_prefix(CATALOG)} {prompt.value[:3]}")
    if packed:
        assert texts[len(PROMPTS) :] == expected


@either_way
def test_only_the_value_of_a_prompt_is_cut(model, packed):
    batches = PromptBatches(model, CATALOG, max_value_tokens=2, packed=packed)
    long = [Prompt("word " * 50, prompt.field) for prompt in PROMPTS]
    texts = texts_of(batches.collate(long, with_answers=True), packed)
    for row, prompt in zip(texts[: len(long)], long, strict=True):
        answer = f"\nField: {CATALOG.fields[prompt.field].text}"
        assert row[: -2 - len(model.tokens(answer))] == model.framed(batches.prefix)
        assert model.tokenizer.decode(row).endswith(answer)


@either_way
def test_answers_stand_in_their_places(model, packed):
    batches = PromptBatches(model, CATALOG, max_value_tokens=5, packed=packed)
    batch = batches.collate(PROMPTS[:3], with_answers=True)
    marked = batch["answer_tokens"] != IGNORED
    assert torch.equal(batch["answer_tokens"][marked], batch["input_ids"][marked])
    words = "".join(f" {CATALOG.fields[prompt.field].text}" for prompt in PROMPTS[:3])
    assert model.tokenizer.decode(batch["answer_tokens"][marked]) == words


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("rows", [1, 2])
def test_packed_vectors_and_gradients_are_those_of_whole_prompts(model, pooling, rows):
    model.pooling = pooling
    weight = model.model.layers[0].self_attn.q_proj.weight.requires_grad_()
    found = []
    for packed in (True, False):
        batches = PromptBatches(model, CATALOG, 5, packed=packed)
        if rows == 2:
            batches.row_tokens = 1 + len(batches.prefix) + 20
        batch = batches.collate(PROMPTS)
        assert not packed or len(batch["input_ids"]) == rows
        encoded = batches.encode(batch)
        (gradient,) = torch.autograd.grad((encoded.prompts.sum(dim=0) * encoded.fields).sum(), weight)
        found.append((encoded.prompts, encoded.fields, gradient))
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-4), (one - other).abs().max()


@either_way
@pytest.mark.parametrize("after", [[], [1]])
def test_a_prompt_has_the_same_vector_with_and_without_its_answer(model, packed, after):
    model.after = after  # a tokenizer may put a token behind every text
    batches = PromptBatches(model, CATALOG, max_value_tokens=5, packed=packed)
    with torch.no_grad():
        alone, answered = (batches.encode(batches.collate(PROMPTS, with_answers=on)) for on in (False, True))
    assert torch.allclose(alone.prompts, answered.prompts, atol=1e-5)
    assert torch.allclose(alone.fields, answered.fields, atol=1e-5) and len(alone.fields) == 2


def test_a_packed_token_sees_its_own_text_and_the_shared_beginning():
    packed = pack([7, 8], [[1, 2], [3]], [[4, 5]], pad=9, row_tokens=5)
    assert packed["input_ids"].tolist() == [[7, 8, 1, 2, 3], [7, 8, 4, 5, 9]]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 3, 2], [0, 1, 0, 1, 0]]
    assert packed["places"].tolist() == [[2, 4], [4, 5], [7, 9]]
    seen = (attention_mask(packed["segments"], packed["sees_shared"], torch.float32) == 0).squeeze(1)
    assert seen[0].int().tolist() == [
        [1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 0, 0, 1]
    ]  # fmt: skip
    assert seen[1].int().tolist()[2:] == [[0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]
    assert packed["segments"][1, -1] == PADDING


def causal_model(tiny_llm, folder, kind, dtype):
    """The tiny tokenizer with a random model of another architecture."""
    import shutil

    shutil.copytree(tiny_llm, folder)
    size = len(load_language_model(tiny_llm, "float32", "auto", gpu=-1).tokenizer)
    torch.manual_seed(0)
    cls, config = {
        "learned positions": (GPT2LMHeadModel, GPT2Config(vocab_size=size, n_embd=16, n_layer=2, n_head=2)),
        "sliding window": (
            MistralForCausalLM,
            MistralConfig(
                vocab_size=size, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=1, sliding_window=512,
            ),
        ),
        "positions in the attention": (
            BloomForCausalLM,
            BloomConfig(vocab_size=size, hidden_size=16, n_layer=2, n_head=2),
        ),
        "local attention": (
            GPTNeoForCausalLM,
            GPTNeoConfig(
                vocab_size=size, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, window_size=64,
                attention_types=[[["global", "local"], 1]],
            ),
        ),
    }[kind]  # fmt: skip
    config.bos_token_id, config.eos_token_id = 0, 1
    cls(config).save_pretrained(folder)
    return load_language_model(folder, dtype, "auto", gpu=-1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("kind", "packed"),
    [
        ("learned positions", True),
        ("sliding window", True),
        ("positions in the attention", False),
        ("local attention", False),
    ],
)
def test_models_that_do_not_understand_packing_get_whole_prompts(tiny_llm, tmp_path, kind, packed, dtype):
    model = causal_model(tiny_llm, tmp_path / "model", kind, dtype)
    weights = {name: value.clone() for name, value in model.model.state_dict().items()}
    batches, whole = PromptBatches(model, CATALOG, 5), PromptBatches(model, CATALOG, 5, packed=False)
    assert batches.packed is packed
    with torch.no_grad():
        one, other = batches.encode(batches.collate(PROMPTS)), whole.encode(whole.collate(PROMPTS))
    assert torch.allclose(one.prompts, other.prompts, atol=1e-4 if dtype == "float32" else 0.1)
    for name, value in model.model.state_dict().items():
        assert torch.equal(value, weights[name]) and value.dtype == weights[name].dtype


def test_a_long_common_beginning_is_not_repeated_for_every_prompt(model):
    batches = PromptBatches(model, CATALOG, 5, packed=True)
    batches.prefix = batches.prefix * 30
    batches.row_tokens = max(ROW_TOKENS, 2 * len(batches.prefix))
    assert len(batches.prefix) > ROW_TOKENS and len(batches.collate(PROMPTS)["input_ids"]) == 1


def test_an_encoder_gets_whole_prompts(tiny_encoder):
    model = load_language_model(tiny_encoder, "float32", "auto", gpu=-1)
    batches = PromptBatches(model, CATALOG, 5)
    encoded = batches.encode(batches.collate(PROMPTS))
    assert not batches.packed
    assert encoded.prompts.shape == (len(PROMPTS), 16)
    assert encoded.fields.shape == (2, 16)
    rows = texts_of(batches.collate(PROMPTS), packed=False)
    assert all(row[0] == 0 and row[-1] == 1 for row in rows)


def test_prompts_longer_than_the_model_are_named(model):
    model.model.config.max_position_embeddings = 50
    with pytest.raises(UserError, match="prompts of up to [0-9]+ tokens do not fit into the 50 positions"):
        PromptBatches(model, CATALOG, 32)
