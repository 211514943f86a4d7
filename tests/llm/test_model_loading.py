"""Folders of language models in the forms that people have them: each gives right vectors, or one clear line."""

import io
import json
import pickle
import shutil
import warnings
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from fuxictr_llm.common import files
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.language_models import LoraKeys
from fuxictr_llm.llm.language_model import load_language_model
from fuxictr_llm.llm.lora import lora_config, with_adapter, with_lora
from fuxictr_llm.llm.model_files import digest_of_model, find_language_model
from support import flip_a_byte

TEXTS = ["red", "city of the shop in Malmö", "grey"]
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
T5 = {
    "d_model": 16,
    "d_ff": 32,
    "d_kv": 8,
    "num_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "pad_token_id": 2,
}
# Family: the class that was saved, its config, and whether its tokens see those behind them.
FAMILIES = {
    "gpt2": ("GPT2LMHeadModel", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}, False),
    "a decoder without its head": ("GPT2Model", {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}, False),
    "a decoder with another head": ("LlamaForSequenceClassification", dict(SIZES, pad_token_id=0), False),
    "a narrow word embedding": (
        "OPTForCausalLM", {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "word_embed_proj_dim": 8}, False,
    ),
    "relative positions": ("XLNetLMHeadModel", {"d_model": 16, "n_layer": 1, "n_head": 2, "d_inner": 32}, True),
    "deberta": ("DebertaV2Model", dict(SIZES, relative_attention=True, position_buckets=16, pos_att_type=["p2c", "c2p"], position_biased_input=False), True),
    "t5": ("T5ForConditionalGeneration", T5, True),
    "t5's encoder alone": ("T5EncoderModel", T5, True),
    "a decoder of a pair": ("BartForCausalLM", {"d_model": 16, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "max_position_embeddings": 64}, False),
    "sinusoids that are not saved": ("MarianMTModel", {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64, "decoder_start_token_id": 0, "pad_token_id": 2}, True),
    "states without attention": ("MambaForCausalLM", {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4}, False),
    "no mask": ("FNetModel", {"hidden_size": 16, "num_hidden_layers": 1, "intermediate_size": 32, "max_position_embeddings": 64}, True),
    "convolutions": ("ConvBertModel", dict(SIZES, embedding_size=16), True),
}  # fmt: skip


@pytest.fixture
def saved(tiny_llm, tmp_path):
    """Saves a random model of a class of transformers beside the tiny tokenizer; its folder."""

    def save(cls, settings):
        folder = tmp_path / "model"
        folder.mkdir()
        for path in tiny_llm.glob("token*"):
            shutil.copy(path, folder)
        torch.manual_seed(0)
        cls = getattr(transformers, cls)
        vocab = {} if settings.keys() & {"text_config", "vocab_size"} else {"vocab_size": 400}
        cls(cls.config_class(**vocab, **settings)).save_pretrained(folder)
        return folder

    return save


def edit(folder, file="config.json", **changes):
    settings = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**settings, **changes}))
    return folder


def load(folder, pooling="auto"):
    return load_language_model(find_language_model(str(folder)), "float32", pooling, gpu=-1)


@torch.no_grad()
def by_hand(model, pooling):
    """What transformers gives for each text alone, without padding."""
    states = [
        model.model(input_ids=torch.tensor([model.framed(model.tokens(text))])).last_hidden_state[0] for text in TEXTS
    ]
    return torch.stack([of[-1] if pooling == "last" else of.mean(dim=0) for of in states])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_the_vectors_of_transformers(saved, family):
    cls, settings, both_ways = FAMILIES[family]
    model = load(saved(cls, settings))
    assert model.pooling == ("mean" if both_ways else "last")
    for model.pooling in ("last", "mean"):
        assert torch.allclose(model.encode(TEXTS), by_hand(model, model.pooling), atol=1e-5)
    assert (model.lm_head is not None) == (not both_ways and "LM" in cls)


@pytest.mark.parametrize(("cls", "settings", "pooling", "head"), [
    ("LlamaForCausalLM", SIZES, "last", True),
    ("LlamaModel", SIZES, "last", False),  # its head would be random
    ("BertForMaskedLM", SIZES, "mean", False),
    ("BertLMHeadModel", dict(SIZES, is_decoder=True), "last", True),
    ("T5ForConditionalGeneration", T5, "mean", False),
])  # fmt: skip
def test_a_config_that_names_no_architecture(saved, cls, settings, pooling, head):
    model = load(edit(saved(cls, settings), architectures=None))
    assert (model.pooling, model.lm_head is not None) == (pooling, head)
    assert torch.allclose(model.encode(TEXTS), by_hand(model, pooling), atol=1e-5)


def test_a_multimodal_model_is_asked_for_texts(saved):
    text = transformers.LlamaConfig(vocab_size=400, **SIZES)
    vision = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    folder = saved(
        "LlavaForConditionalGeneration", {"text_config": text, "vision_config": vision, "image_token_index": 5}
    )
    model, whole = load(folder), transformers.LlavaForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        states = whole.model(input_ids=torch.tensor([model.framed(model.tokens("red"))])).last_hidden_state
    assert model.pooling == "last" and model.positions == 64
    assert torch.allclose(model.encode(["red"]), states[:, -1], atol=1e-5)


def test_models_of_other_things_than_texts_are_one_line(saved):
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    folder = saved(
        "CLIPModel", {"text_config": SIZES | {"vocab_size": 400}, "vision_config": vision, "projection_dim": 8}
    )
    with pytest.raises(UserError, match=r"\(CLIPModel\) gives no vectors of texts alone: .* take one that reads texts"):
        load(folder)


def test_lora_names_the_projections_of_a_model_that_peft_does_not_know(saved):
    model = load(saved("XLMModel", {"emb_dim": 16, "n_layers": 1, "n_heads": 2, "max_position_embeddings": 64}))
    with pytest.raises(
        UserError, match=r"nothing to tune in XLMModel .* lora_targets, of: k_lin, lin1, lin2, out_lin, q_lin, v_lin$"
    ):
        with_lora(model.model, LoraKeys())
    assert with_lora(model.model, LoraKeys(lora_targets=["q_lin"])) is not None


def test_what_depends_on_padding_is_tuned_without_it(saved):
    model = load(saved("FNetModel", FAMILIES["no mask"][1]))
    rows = [model.framed(model.tokens(text)) for text in TEXTS]
    model.model.requires_grad_(True)
    together = model.embed(model.batch(rows))
    assert torch.allclose(together, torch.cat([model.embed(model.batch([row])) for row in rows]), atol=1e-6)
    together.sum().backward()
    assert model.model.get_input_embeddings().weight.grad.abs().sum() > 0


def test_a_tokenizer_with_more_tokens_than_the_model(saved):
    with pytest.raises(
        UserError, match=r"has a tokenizer of \d+ tokens and embeddings for 100 alone; take the tokenizer"
    ):
        load(saved("GPT2LMHeadModel", FAMILIES["gpt2"][1] | {"vocab_size": 100}))


def test_a_token_that_was_added_to_the_tokenizer_alone(tiny_llm, tmp_path):
    folder = shutil.copytree(tiny_llm, tmp_path / "model")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<image>"])
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(folder)
    model = load(folder)
    assert torch.allclose(model.encode(TEXTS), load(tiny_llm).encode(TEXTS))  # padded with a token that there is
    with pytest.raises(UserError, match="gives the token '<image>' the id .* take the tokenizer that belongs to it"):
        model.encode(["red <image>"])


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 4}, {"vocab_size": 999}, {"hidden_size": 32}])
def test_a_config_of_another_model_is_not_filled_up_with_random_weights(tiny_llm, tmp_path, changes):
    folder = edit(shutil.copytree(tiny_llm, tmp_path / "model"), **changes)
    with pytest.raises(UserError, match="has no weights for 18 of its parts|weights have other shapes than its config"):
        load(folder)


@pytest.mark.parametrize(
    ("method", "library"), [("bitsandbytes", "bitsandbytes"), ("gptq", "optimum"), ("awq", "gptqmodel")]
)
def test_a_quantized_folder_names_the_library_that_it_needs(tiny_llm, tmp_path, method, library):
    quantized = {
        "quant_method": method,
        **({"load_in_4bit": True} if library == method else {"bits": 4, "group_size": 32}),
    }
    folder = edit(shutil.copytree(tiny_llm, tmp_path / "model"), quantization_config=quantized)
    with pytest.raises(
        UserError, match=f"is quantized \\('{method}'\\) and cannot be loaded here: .*{library}.* not quantized"
    ):
        load(folder)


class Marks:
    """Leaves a file when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("mark"),)


@pytest.mark.parametrize("content", [
    pickle.dumps(Marks()), pickle.dumps({"a": 1}), b"", b"garbage", b"version https://git-lfs.github.com/spec/v1\n",
    {"model.norm.weight": Marks()}, [1, 2], 5, {"a": "b"},
])  # fmt: skip
def test_a_bin_of_other_things_than_weights_is_one_line(tiny_llm, tmp_path, content):
    folder = shutil.copytree(tiny_llm, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    file = folder / "pytorch_model.bin"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(UserError, match="cannot be loaded|has no weights for") as error:
        load(folder)
    assert "\n" not in str(error.value)
    assert "weights_only" not in str(error.value)
    assert not Path("mark").exists()


def flip(content):
    return content[: len(content) // 2] + bytes([content[len(content) // 2] ^ 0x80]) + content[len(content) // 2 + 1 :]


@pytest.mark.parametrize(("file", "damage"), [
    ("model.safetensors", lambda content: content[:-9]), ("model.safetensors", lambda content: b"\xff" * 8 + b"{}"),
    ("model.safetensors", lambda content: b""), ("tokenizer.json", flip), ("tokenizer.json", lambda content: content[:500]),
    ("tokenizer.json", lambda content: b"[]"), ("config.json", lambda content: content[:-20]), ("config.json", lambda content: b"[1]"),
    ("config.json", lambda content: b"\xff\xfe\x00"), ("tokenizer_config.json", lambda content: b"{"),
])  # fmt: skip
def test_a_damaged_file_is_one_line(tiny_llm, tmp_path, file, damage):
    folder = shutil.copytree(tiny_llm, tmp_path / "model")
    (folder / file).write_bytes(damage((folder / file).read_bytes()))
    with pytest.raises(UserError, match="cannot be loaded: .* copy the folder again") as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_weights_that_are_not_numbers_are_one_line(tiny_llm, tmp_path):
    folder = shutil.copytree(tiny_llm, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="hidden states are not finite numbers; .* copy the folder again"):
        load(folder)


CODE = """
open({mark!r}, "w").close()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class C(LlamaConfig): model_type = "strange"
class M(LlamaForCausalLM): config_class = C
class T(PreTrainedTokenizerFast): pass
"""
MODELS = {"AutoModel": "code.M", "AutoModelForCausalLM": "code.M"}


@pytest.mark.parametrize(("model_type", "auto_map", "runs"), [
    ("strange", {"AutoConfig": "code.C", **MODELS}, False),
    ("strange", {"AutoConfig": "someone/repo--code.C", **MODELS}, False),
    ("encoder-decoder", MODELS, False),
    ("llama", {"AutoTokenizer": ["code.T", "code.T"]}, False),
    ("llama", MODELS, True),  # transformers has that model itself
])  # fmt: skip
def test_the_code_in_a_folder_is_never_run_nor_asked_about(tiny_llm, tmp_path, monkeypatch, model_type, auto_map, runs):
    folder = shutil.copytree(tiny_llm, tmp_path / "model")
    (folder / "code.py").write_text(CODE.format(mark=str(tmp_path / "mark")))
    if "AutoTokenizer" in auto_map:
        edit(folder, "tokenizer_config.json", tokenizer_class="T", auto_map=auto_map)
    else:
        edit(folder, model_type=model_type, auto_map=auto_map)
    stdin = io.StringIO("y\n" * 9)
    monkeypatch.setattr("sys.stdin", stdin)
    if runs:
        assert torch.equal(load(folder).encode(TEXTS), load(tiny_llm).encode(TEXTS))
    else:
        with pytest.raises(UserError, match="wants code of its own run .* which is never done; take a language model"):
            load(folder)
    assert not (tmp_path / "mark").exists() and stdin.tell() == 0


def test_kernels_that_a_config_names_are_not_fetched(tiny_llm, tmp_path):
    folder = edit(shutil.copytree(tiny_llm, tmp_path / "model"), attn_implementation="someone/kernel")
    assert load(folder).model.config._attn_implementation == "sdpa"


def test_an_adapter_is_told_from_a_model(tiny_llm, tmp_path):
    folder = shutil.copytree(tiny_llm, tmp_path / "model")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "megatron_core": "evil"}))
    with pytest.raises(UserError, match="holds a LoRA adapter .* merge it into its model"):
        find_language_model(str(folder))


def test_tuning_says_nothing_of_old_names(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        with_adapter(model.model, lora_config(LoraKeys()))


def test_a_byte_that_changed_without_a_trace_is_found_when_the_model_is_loaded(tiny_llm, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "REMEMBERED_ABOVE", 1)  # as if its files were large
    folder = shutil.copytree(tiny_llm, tmp_path / "model")
    digest = digest_of_model(folder)
    flip_a_byte(folder / "model.safetensors")
    assert digest_of_model(folder) == digest
    with pytest.raises(UserError, match=r"model' is damaged or was changed: .*; run the same again"):
        load_language_model(folder, "float32", "auto", -1, digest)
    assert digest_of_model(folder) != digest  # what is made with it now has another key
    load_language_model(folder, "float32", "auto", -1, digest_of_model(folder))
