"""SSFT: both losses against the literal equations, tuning, resuming, early stopping, and what goes wrong."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.llm import lora
from fuxictr_llm.llm.language_model import load_language_model
from fuxictr_llm.model_zoo.LLaCTR import ssft
from fuxictr_llm.model_zoo.LLaCTR.config import FieldVectorsConfig
from fuxictr_llm.model_zoo.LLaCTR.prompt_batches import PromptBatches
from fuxictr_llm.model_zoo.LLaCTR.prompts import sample_prompts
from fuxictr_llm.model_zoo.LLaCTR.ssft import contrastive_loss, generative_loss, tune
from support import CATALOG, flip_a_byte


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
    batches = PromptBatches(model, CATALOG, 32)
    batch = batches.collate(tuning, with_answers=True)

    @torch.no_grad()
    def answer_loss():
        hidden = batches.encode(batch).hidden
        return generative_loss(hidden, batch["answer_tokens"], model.lm_head, len(tuning)).item()

    untuned = answer_loss()
    config = FieldVectorsConfig(
        ssft_epochs=30,
        ssft_patience=None,
        ssft_batch_size=4,
        ssft_learning_rate=0.02,
        ssft_warmup_steps=0,
        lora_dropout=0.0,
        **objective,
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


@pytest.mark.parametrize("packed", [True, False])
def test_the_generative_loss_equals_the_literal_equation(model, packed):
    """-log P(answer | prompt), token by token, with one forward pass for each."""
    batches = PromptBatches(model, CATALOG, max_value_tokens=5, packed=packed)
    prompts = sample_prompts(CATALOG, 2, 0, 0)[0]
    batch = batches.collate(prompts, with_answers=True)
    total = 0.0
    with torch.no_grad():
        for prompt in prompts:
            row = model.framed(batches.prefix) + batches.value_tokens(prompt) + model.tokens("\nField:")
            for token in model.tokens(f" {CATALOG.fields[prompt.field].text}"):
                state = model.model(torch.tensor([row])).last_hidden_state[0, -1]
                total -= torch.log_softmax(model.lm_head(state), dim=-1)[token].item()
                row.append(token)
        hidden = batches.encode(batch).hidden
        loss = generative_loss(hidden, batch["answer_tokens"], model.lm_head, len(prompts))
    assert loss.item() == pytest.approx(total / len(prompts), rel=1e-5)


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


def killed_at(monkeypatch, step):
    """Interrupts the tuning in the middle of that step, once; the steps begun so far."""
    begun, loss = [], ssft.contrastive_loss

    def counted(*args):
        begun.append(1)
        if len(begun) == step:
            raise KeyboardInterrupt
        return loss(*args)

    monkeypatch.setattr(ssft, "contrastive_loss", counted)
    return begun


@pytest.mark.parametrize("half_written", [False, True])
def test_a_killed_tuning_ends_with_the_weights_of_an_uninterrupted_one(tiny_llm, monkeypatch, half_written):
    config = FieldVectorsConfig(
        ssft_epochs=8, ssft_batch_size=4, lora_dropout=0.2, ssft_patience=None
    ).filled()  # 24 steps, saved at 10 and 20
    prompts = sample_prompts(CATALOG, 6, 0, 0)

    def load():
        return load_language_model(tiny_llm, "float32", "auto", gpu=-1)

    whole = load()
    tune(whole, CATALOG, *prompts, config, Path("whole"))

    steps = killed_at(monkeypatch, 17)
    with pytest.raises(KeyboardInterrupt):
        tune(load(), CATALOG, *prompts, config, Path("killed"))
    assert [path.name for path in Path("killed").iterdir()] == ["checkpoint-10"]
    if half_written:
        Path("killed/checkpoint-20").mkdir()
    again = load()
    tune(again, CATALOG, *prompts, config, Path("killed"))
    assert len(steps) == 17 + 14 and again.tokens_read == whole.tokens_read > 0
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name


def tuned_vectors(tiny_llm):
    """Vectors of a language model whose tuning takes 24 steps, with checkpoints at 10 and 20 in the folder `ssft`."""
    config = FieldVectorsConfig(ssft_epochs=8, ssft_batch_size=4, ssft_patience=None).filled()
    tuning, held_out = sample_prompts(CATALOG, 6, 0, 0)[0][:12], sample_prompts(CATALOG, 6, 0.5, 1)[1]
    model = load_language_model(tiny_llm, "float32", "auto", gpu=-1)
    tune(model, CATALOG, tuning, held_out, config, Path("ssft"))
    return model.encode(["color", "city"])


@pytest.fixture(scope="module")
def uninterrupted(tiny_llm, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("uninterrupted"))
        return tuned_vectors(tiny_llm)


@pytest.mark.parametrize(("damaged", "steps_again"), [
    ("checkpoint-20/adapter_model.safetensors", 14), ("checkpoint-20/optimizer.pt", 14), ("best.safetensors", 24), (None, 4),
])  # fmt: skip
def test_a_changed_byte_in_a_checkpoint_is_not_gone_on_from(
    tiny_llm, uninterrupted, monkeypatch, caplog, damaged, steps_again
):
    steps = killed_at(monkeypatch, 21)
    with pytest.raises(KeyboardInterrupt):
        tuned_vectors(tiny_llm)
    if damaged:
        flip_a_byte(Path("ssft", damaged))
    vectors = tuned_vectors(tiny_llm)
    assert len(steps) == 21 + steps_again and (not damaged or f"{damaged} is damaged: SSFT " in caplog.text)
    assert torch.equal(vectors, uninterrupted)


def test_an_encoder_can_be_tuned(tiny_encoder):
    model = load_language_model(tiny_encoder, "float32", "auto", gpu=-1)
    facts = tune(
        model, CATALOG, *sample_prompts(CATALOG, 4, 0.25, 0), FieldVectorsConfig(ssft_epochs=1).filled(), Path("ssft")
    )
    assert facts["held_out"] == 2 and all(math.isfinite(loss) for _, loss in facts["losses"])


def test_an_encoder_cannot_generate(tiny_encoder):
    model = load_language_model(tiny_encoder, "float32", "auto", gpu=-1)
    config = FieldVectorsConfig(ssft_generative=1.0, language_model="tiny").filled()
    with pytest.raises(UserError, match="ssft_generative needs a causal language model; 'tiny' is an encoder"):
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


def random_accuracies(monkeypatch, values):
    """Held-out accuracies as if measured; the first is before tuning, the last after it."""
    given = iter(values)
    monkeypatch.setattr(ssft, "accuracy", lambda *_: next(given))


def test_tuning_stops_early_and_keeps_the_best_epoch(tiny_llm, monkeypatch):
    config = FieldVectorsConfig(ssft_epochs=9, ssft_batch_size=4, ssft_warmup_steps=0).filled()
    prompts, held_out = sample_prompts(CATALOG, 6, 0.34, 0)
    weights = []

    def states_after(epoch, state, model, **_):
        if state.global_step % 2 == 0:
            weights.append({k: v.clone() for k, v in model.state_dict().items() if "lora" in k})

    noted = type(
        "Noted",
        (lora.TuningProgress,),
        {"on_step_end": lambda self, *args, **kwargs: states_after(0, args[1], **kwargs)},
    )
    monkeypatch.setattr(lora, "TuningProgress", noted)
    random_accuracies(monkeypatch, [0.1, 0.2, 0.5, 0.4, 0.5, 0.5])
    model = load_language_model(tiny_llm, "float32", "auto", gpu=-1)
    facts = tune(model, CATALOG, prompts, held_out, config, Path("ssft"))
    assert (facts["epochs"], facts["best_epoch"], facts["accuracy_before"]) == (4, 4, 0.1)
    assert facts["accuracies"] == [[0, 0.1], [2, 0.2], [4, 0.5], [6, 0.4], [8, 0.5]]
    assert [step for step, _ in facts["losses"]] == list(range(1, 9))
    random_accuracies(monkeypatch, [0.1, 0.3, 0.2, 0.1, 0.3])
    weights.clear()
    facts = tune(
        load := load_language_model(tiny_llm, "float32", "auto", gpu=-1), CATALOG, prompts, held_out, config, Path("b")
    )
    assert (facts["epochs"], facts["best_epoch"]) == (3, 1) and len(weights) == 3
    tuned = load.model.state_dict()
    assert all(torch.equal(value, tuned[name]) for name, value in weights[0].items())
    assert not all(torch.equal(value, tuned[name]) for name, value in weights[2].items())


def test_a_killed_tuning_keeps_its_best_epoch_too(tiny_llm, monkeypatch):
    """Killed behind an epoch's end and before the next checkpoint: history and best weights end up the same."""
    config = FieldVectorsConfig(ssft_epochs=8, ssft_batch_size=4, ssft_patience=None).filled()  # 16 steps, saved at 10
    prompts = sample_prompts(CATALOG, 6, 0.34, 0)

    def load():
        return load_language_model(tiny_llm, "float32", "auto", gpu=-1)

    whole, again = load(), load()
    expected = tune(whole, CATALOG, *prompts, config, Path("whole"))
    killed_at(monkeypatch, 14)
    with pytest.raises(KeyboardInterrupt):
        tune(load(), CATALOG, *prompts, config, Path("killed"))
    assert tune(again, CATALOG, *prompts, config, Path("killed")) == expected
    assert all(torch.equal(value, again.model.state_dict()[name]) for name, value in whole.model.state_dict().items())


def test_a_tuning_killed_after_its_early_stop_does_not_go_on(tiny_llm, monkeypatch):
    """2 steps an epoch: the fifth epoch ends with a checkpoint, and stops."""
    config = FieldVectorsConfig(ssft_epochs=9, ssft_batch_size=4).filled()
    prompts = sample_prompts(CATALOG, 6, 0.34, 0)

    def tuned(folder, measured):
        random_accuracies(monkeypatch, measured)
        return tune(load_language_model(tiny_llm, "float32", "auto", gpu=-1), CATALOG, *prompts, config, Path(folder))

    facts = tuned("ssft", [0.1, 0.2, 0.3, 0.4, 0.3, 0.3, 0.4])
    assert Path("ssft/checkpoint-10").is_dir() and facts["epochs"] == 5
    assert tuned("ssft", [0.1, 0.2, 0.3, 0.4, 0.3, 0.3, 0.4]) == facts


@pytest.mark.parametrize("kind", ["loss", "gradients"])
def test_numbers_that_are_none_stop_the_tuning_at_their_step(model, monkeypatch, kind):
    calls, loss = [], ssft.contrastive_loss

    def broken(prompts, *args):
        calls.append(1)
        if len(calls) < 13:
            return loss(prompts, *args)
        nothing = (prompts - prompts.detach()).sum()
        return nothing * float("nan") if kind == "loss" else nothing.sqrt()

    monkeypatch.setattr(ssft, "contrastive_loss", broken)
    config = FieldVectorsConfig(ssft_epochs=8, ssft_batch_size=4).filled()
    found = f"SSFT: .*{kind}.* not finite at step 13 .*last good checkpoint is 'ssft/checkpoint-10'.*lower ssft_learn"
    with pytest.raises(UserError, match=found):
        tune(model, CATALOG, *sample_prompts(CATALOG, 6, 0, 0), config, Path("ssft"))
    saved = load_file("ssft/checkpoint-10/adapter_model.safetensors")
    assert saved and all(torch.isfinite(value).all() for value in saved.values())


def test_values_that_the_tokenizer_drops_are_no_prompts(model, monkeypatch):
    prompts, _ = sample_prompts(CATALOG, 3, 0, 0)
    monkeypatch.setattr(type(model), "tokens", lambda self, text, limit=None: [5] if limit is None else [])
    with pytest.raises(UserError, match="no field has values .* or its tokenizer drops them all; set ssft_epochs: 0"):
        tune(model, CATALOG, prompts, [], FieldVectorsConfig().filled(), Path("ssft"))
