"""Pooling, framing and padding; models found by folder; SSFT's loss against the literal equation."""

import math
import shutil
from pathlib import Path

import pytest
import torch

from fuxictr_llm.errors import UserError
from fuxictr_llm.semantics import ssft
from fuxictr_llm.semantics.catalog import FieldCatalog, FieldEntry
from fuxictr_llm.semantics.config import FieldVectorsConfig
from fuxictr_llm.semantics.language_model import load_language_model, pool
from fuxictr_llm.semantics.model_folder import digest_of_model, find_language_model
from fuxictr_llm.semantics.prompts import common_prefix, sample_prompts
from fuxictr_llm.semantics.ssft import _PromptTexts, contrastive_loss, generative_loss, tune

CATALOG = FieldCatalog(
    "clicks",
    (
        FieldEntry("color", "color", ("red", "green", "blue", "black", "white", "grey")),
        FieldEntry("city", "city of the shop", ("Rome", "Oslo", "Bern", "Cairo", "Lima", "Malmö")),
    ),
)


@pytest.fixture
def model(tiny_llm):
    return load_language_model(tiny_llm, "float32", "auto", gpu=-1)


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory, tiny_llm):
    """A folder with a random BERT and a tokenizer that frames texts with two tokens."""
    from tokenizers import Tokenizer, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_bert")
    tokenizer = Tokenizer.from_file(str(tiny_llm / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<s>").save_pretrained(folder)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    return folder


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


def test_causal_models_pool_the_last_token_and_encoders_the_mean(model, tiny_encoder):
    assert (model.pooling, model.before, model.after) == ("last", [0], [])
    encoder = load_language_model(tiny_encoder, "float32", "auto", gpu=-1)
    assert (encoder.pooling, encoder.before, encoder.after) == ("mean", [0], [1])
    assert encoder.encode(["red"]).shape == (1, 16)


def test_tuning_and_export_frame_texts_alike(model):
    texts = _PromptTexts(model, CATALOG, max_value_tokens=5)
    for row, field in zip(texts.fields["input_ids"].tolist(), CATALOG.fields, strict=True):
        expected = model.tokenizer(field.text, add_special_tokens=True)["input_ids"]
        assert row[: len(expected)] == expected
    prompts = sample_prompts(CATALOG, 3, 0, 0)[0]
    for row, prompt in zip(texts.collate(prompts)["input_ids"].tolist(), prompts, strict=True):
        assert model.tokenizer.decode(row).startswith(f"<s>{common_prefix(CATALOG)} {prompt.value[:3]}")


def test_only_the_value_of_a_prompt_is_cut(model):
    texts = _PromptTexts(model, CATALOG, max_value_tokens=2)
    long = [type(p)("word " * 50, p.field) for p in sample_prompts(CATALOG, 2, 0, 0)[0]]
    assert texts.collate(long)["input_ids"].shape[1] == 1 + len(texts.prefix) + 2


def test_the_contrastive_loss_equals_the_literal_equation():
    torch.manual_seed(0)
    prompts, fields, answers, tau = torch.randn(3, 5), torch.randn(4, 5), torch.tensor([2, 0, 3]), 0.1
    total = 0.0
    for prompt, answer in zip(prompts, answers, strict=True):
        cos = [float(torch.dot(prompt, field) / (prompt.norm() * field.norm())) for field in fields]
        total -= math.log(math.exp(cos[answer] / tau) / sum(math.exp(c / tau) for c in cos))
    assert contrastive_loss(prompts, fields, answers, tau).item() == pytest.approx(total / 3, abs=1e-5)


@pytest.mark.parametrize("objective", [{}, {"ssft_generative": 1.0}, {"ssft_contrastive": 0.0, "ssft_generative": 1.0}])
def test_tuning_teaches_the_fields_and_touches_lora_alone(model, objective):
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    tuning, _ = sample_prompts(CATALOG, 6, 0.34, 0)
    batch = _PromptTexts(model, CATALOG, 32).collate_with_answers(tuning)

    @torch.no_grad()
    def answer_loss():
        return generative_loss(model.hidden(batch), batch["answer_tokens"], model.lm_head).item()

    untuned = answer_loss()
    config = FieldVectorsConfig(
        ssft_epochs=30, ssft_batch_size=4, ssft_learning_rate=0.02, ssft_warmup_steps=0, lora_dropout=0.0, **objective
    ).filled()
    facts = tune(model, CATALOG, tuning, tuning, config, Path("ssft"))
    if objective.get("ssft_contrastive", 1):
        assert facts["accuracy_after"] == 1.0 > facts["accuracy_before"]
    if objective:  # a random model's head is almost flat and stays as it is, so there is little to gain
        assert answer_loss() < untuned - 0.3
    assert 0 < facts["tuned_parameters"] < 3000
    after = {name.removeprefix("base_model.model."): value for name, value in model.model.state_dict().items()}
    for name, value in before.items():
        kept = after.get(name, after.get(name.replace("_proj.", "_proj.base_layer.")))
        assert torch.equal(kept, value), name


def test_the_generative_loss_equals_the_literal_equation(model):
    """-log P(answer | prompt), token by token, with one forward pass for each."""
    texts = _PromptTexts(model, CATALOG, max_value_tokens=5)
    prompts = sample_prompts(CATALOG, 2, 0, 0)[0]
    batch = texts.collate_with_answers(prompts)
    total = 0.0
    with torch.no_grad():
        for prompt in prompts:
            row = texts.collate([prompt])["input_ids"][0].tolist() + model.tokens("\nField:")
            for token in model.tokens(f" {CATALOG.fields[prompt.field].text}"):
                state = model.model(torch.tensor([row])).last_hidden_state[0, -1]
                total -= torch.log_softmax(model.lm_head(state), dim=-1)[token].item()
                row.append(token)
        loss = generative_loss(model.hidden(batch), batch["answer_tokens"], model.lm_head)
    assert loss.item() == pytest.approx(total / len(prompts), rel=1e-5)


def test_a_prompt_has_the_same_vector_with_and_without_its_answer(model):
    texts = _PromptTexts(model, CATALOG, max_value_tokens=5)
    prompts = sample_prompts(CATALOG, 3, 0, 0)[0]
    alone, answered = texts.collate(prompts), texts.collate_with_answers(prompts)
    with torch.no_grad():
        pooled = pool(model.hidden(answered), answered["prompt_mask"], "last")
        assert torch.allclose(pooled, model.embed(alone), atol=1e-5)


def test_presets_fill_what_is_left_open():
    paper = FieldVectorsConfig(ssft_preset="paper", ssft_epochs=1).filled()
    assert (paper.ssft_values_per_field, paper.ssft_tau, paper.ssft_batch_size) == (1000, 0.02, 128)
    assert paper.ssft_epochs == 1 and FieldVectorsConfig().filled().ssft_values_per_field == 24
    with pytest.raises(UserError, match="ssft_contrastive and ssft_generative are both 0"):
        FieldVectorsConfig(ssft_contrastive=0.0).filled()


def test_tuning_is_repeatable(tiny_llm):
    vectors = []
    for _ in range(2):
        torch.rand(3)
        model = load_language_model(tiny_llm, "float32", "auto", gpu=-1)
        tune(
            model,
            CATALOG,
            *sample_prompts(CATALOG, 4, 0.25, 0),
            FieldVectorsConfig(ssft_epochs=1).filled(),
            Path("ssft"),
        )
        vectors.append(model.encode(["color", "city"]))
    assert torch.equal(*vectors)


@pytest.mark.parametrize("half_written", [False, True])
def test_a_killed_tuning_ends_with_the_weights_of_an_uninterrupted_one(tiny_llm, monkeypatch, half_written):
    config = FieldVectorsConfig(
        ssft_epochs=8, ssft_batch_size=4, lora_dropout=0.2
    ).filled()  # 24 steps, saved at 10 and 20
    prompts = sample_prompts(CATALOG, 6, 0, 0)

    def load():
        return load_language_model(tiny_llm, "float32", "auto", gpu=-1)

    whole = load()
    tune(whole, CATALOG, *prompts, config, Path("whole"))

    losses, loss = [], ssft.contrastive_loss

    def counted(*args):
        losses.append(1)
        if len(losses) == 17:
            raise KeyboardInterrupt
        return loss(*args)

    monkeypatch.setattr(ssft, "contrastive_loss", counted)
    with pytest.raises(KeyboardInterrupt):
        tune(load(), CATALOG, *prompts, config, Path("killed"))
    assert [path.name for path in Path("killed").iterdir()] == ["checkpoint-10"]
    if half_written:
        Path("killed/checkpoint-20").mkdir()
    again = load()
    tune(again, CATALOG, *prompts, config, Path("killed"))
    assert len(losses) == 17 + 14
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def test_an_encoder_can_be_tuned(tiny_encoder):
    model = load_language_model(tiny_encoder, "float32", "auto", gpu=-1)
    facts = tune(
        model, CATALOG, *sample_prompts(CATALOG, 4, 0.25, 0), FieldVectorsConfig(ssft_epochs=1).filled(), Path("ssft")
    )
    assert facts["held_out"] == 2 and math.isfinite(facts["mean_loss"])


def test_an_encoder_cannot_generate(tiny_encoder):
    model = load_language_model(tiny_encoder, "float32", "auto", gpu=-1)
    config = FieldVectorsConfig(ssft_generative=1.0, language_model="tiny").filled()
    with pytest.raises(UserError, match="ssft_generative needs a causal language model; 'tiny' is an encoder"):
        tune(model, CATALOG, *sample_prompts(CATALOG, 4, 0.25, 0), config, Path("ssft"))


def test_prompts_longer_than_the_model_are_named(model):
    model.model.config.max_position_embeddings = 50
    config = FieldVectorsConfig(language_model="tiny").filled()
    with pytest.raises(UserError, match="prompts of up to [0-9]+ tokens do not fit into the 50 positions of 'tiny'"):
        tune(model, CATALOG, *sample_prompts(CATALOG, 4, 0.25, 0), config, Path("ssft"))


def test_nothing_to_tune_is_an_error(model):
    with pytest.raises(UserError, match="no field has values to tune"):
        tune(model, CATALOG, [], [], FieldVectorsConfig().filled(), Path("ssft"))
    with pytest.raises(UserError, match="LoRA finds nothing to tune .* lora_targets"):
        tune(
            model,
            CATALOG,
            *sample_prompts(CATALOG, 2, 0, 0),
            FieldVectorsConfig(lora_targets=["absent"]).filled(),
            Path("ssft"),
        )


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
