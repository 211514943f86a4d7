"""Tuning on clicks: what is learnt, from what, what stays as it is, resuming, the store, and what goes wrong."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic.dataclasses import dataclass
from safetensors.torch import load_file

from fuxictr_llm.common.checks import STRICT
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of
from fuxictr_llm.config.language_models import LanguageModelConfig
from fuxictr_llm.llm.language_model import load_language_model
from fuxictr_llm.llm.lora import CONFIG, WEIGHTS, load_adapted
from fuxictr_llm.model_zoo.ELEC import click_model, click_tuning
from fuxictr_llm.model_zoo.ELEC.click_model import HEAD, ClickBatches, learn_clicks
from fuxictr_llm.model_zoo.ELEC.click_tuning import ClickRows, draw_rows, tune_on_clicks
from fuxictr_llm.model_zoo.ELEC.config import ClickTuningConfig

USERS = ["age is 20.", "age is 30. gender is female.", "gender is male.", ""]
ITEMS = ["color is red.", "color is green. city is Rome.", "color is blue. city is Oslo.", "color is black."]
LIKED = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0]])


@dataclass(config=STRICT, kw_only=True)
class Config(ClickTuningConfig, LanguageModelConfig):
    """The keys of ELEC that are read here."""

    llm_max_text_tokens: int = 64


def config_of(folder, **changes):
    settings = {"click_epochs": 2, "click_batch_size": 8, "click_warmup_steps": 0, "click_patience": None, **changes}
    return Config(language_model=str(folder), llm_dtype="float32", **settings)


def rows_of(times):
    """Each user with each item, so many times."""
    positions = np.stack(np.divmod(np.tile(np.arange(16), times), 4), axis=1).astype(np.int32)
    return ClickRows(positions, LIKED[positions[:, 0], positions[:, 1]].astype(float))


def tune(config, rows=None, valid=None, units=(USERS, ITEMS)):
    """Folder and facts, without the time that it took."""
    folder, facts = tune_on_clicks(config, -1, units, rows or rows_of(2), valid or rows_of(1))
    assert facts.pop("seconds", 1.0) > 0
    return folder, facts


def learn(model, config, times=2):
    model.pooling = "mean"
    learnt, valid = (draw_rows("train", rows_of(n), [USERS, ITEMS], 1000, 0, "click_rows") for n in (times, 1))
    return learn_clicks(model, learnt, valid, config, Path("checkpoints"))


def test_clicks_are_learnt_and_the_language_models_own_weights_stay(model, tiny_llm):
    before = {name: value.clone() for name, value in model.model.state_dict().items()}
    facts = learn(model, config_of(tiny_llm, click_epochs=20, click_learning_rate=0.02, click_batch_size=16))
    assert facts["auc"] == max(auc for _, auc in facts["aucs"]) > 0.9 > facts["aucs"][0][1]
    assert np.mean([loss for _, loss in facts["losses"][-5:]]) < 0.3
    after = {name.removeprefix("base_model.model."): value for name, value in model.model.state_dict().items()}
    for name, value in before.items():
        assert torch.equal(after.get(name, after.get(name.replace("_proj.", "_proj.base_layer."))), value), name


def test_gradients_reach_lora_and_head_alone(model, tiny_llm, monkeypatch):
    gradients, logits = [], ClickBatches.logits

    def watched(self, wrapped, batch):
        gradients.append({name: p.grad for name, p in wrapped.named_parameters() if p.requires_grad})
        return logits(self, wrapped, batch)

    monkeypatch.setattr(ClickBatches, "logits", watched)
    monkeypatch.setattr(torch.nn.Module, "zero_grad", lambda *_, **__: None)
    learn(model, config_of(tiny_llm, lora_targets=["q_proj", "k_proj", "v_proj", "o_proj"], click_learning_rate=0.01))
    names, last = list(gradients[-1]), gradients[-1]
    assert len([name for name in names if "lora_" in name]) == 2 * 4 * 2 and [name for name in names if HEAD in name]
    assert all("lora_" in name or HEAD in name for name in names)
    for name, gradient in last.items():
        assert gradient is not None and gradient.abs().sum() > 0, name


def test_a_batch_equals_each_text_encoded_alone(model, tiny_llm):
    """Equal texts of a batch are encoded once, padding counts nowhere, an empty text has zeros."""
    head = click_model.ClickHead(2, 16)
    model.model.add_module(HEAD, head)
    model.pooling = "mean"
    rows = draw_rows("train", rows_of(2), [[*USERS[:3], USERS[0]], [*ITEMS[:3], ""]], 1000, 0, "click_rows")
    assert [len(texts) for texts in rows.texts] == [3, 4]
    assert model.before and not model.encode(["", "red"])[0].any()
    batches = ClickBatches(model, rows, max_tokens=9)
    batch = batches.collate(list(range(32)))
    assert [len(unit["input_ids"]) for unit in batch["units"]] == [3, 4]
    expected = []
    for user, item in rows.places:
        texts = [rows.texts[0][user], rows.texts[1][item]]
        expected.append(head(torch.stack([model.encode([text, "red"], limit=9)[0] for text in texts]).unsqueeze(0)))
    assert torch.allclose(batches.logits(model.model, batch), torch.cat(expected), atol=1e-5)
    empty = {"units": [batches.collate([0])["units"][0]] * 2, "clicks": batch["clicks"][:1]}
    empty["units"][1] = {**empty["units"][1], "real": torch.tensor([[False]])}
    assert torch.isfinite(torch.autograd.grad(batches.logits(model.model, empty).sum(), head.predict.weight)[0]).all()


def test_the_adapter_merged_equals_the_tuned_model(tiny_llm, monkeypatch):
    tuned = []

    def learnt(model, *args):
        facts = learn_clicks(model, *args)
        tuned.append(model.encode([*USERS, *ITEMS]))
        return facts

    monkeypatch.setattr(click_model, "learn_clicks", learnt)
    folder, facts = tune(config_of(tiny_llm, click_learning_rate=0.05))
    assert sorted(path.name for path in folder.iterdir()) == [CONFIG, WEIGHTS, "manifest.json"]
    assert not [name for name in load_file(folder / WEIGHTS) if HEAD in name]
    assert (facts["rows"], facts["valid_rows"], facts["texts"], facts["epochs"]) == (32, 16, [4, 4], 2)
    model = load_language_model(tiny_llm, "float32", "mean", gpu=-1)
    untuned = model.encode([*USERS, *ITEMS])
    load_adapted(model, folder)
    merged = model.encode([*USERS, *ITEMS])
    assert (merged - tuned[0]).abs().max() < 1e-5 < 1e-2 < (merged - untuned).abs().max()
    assert not any(p.requires_grad for p in model.model.parameters())


def test_the_store_knows_what_an_adapter_was_made_from(tiny_llm, monkeypatch):
    config = config_of(tiny_llm, click_epochs=1)
    folder, facts = tune(config)
    assert not (Path("cache") / click_tuning.CHECKPOINTS / folder.name).exists()
    made = []
    monkeypatch.setattr(click_tuning, "_tune", lambda *args: made.append(args[-1]) or (folder / WEIGHTS, {}))
    assert tune(config) == (folder, facts) and not made
    tune(config_of(tiny_llm, click_epochs=1, click_seed=1))
    tune(config_of(tiny_llm, click_epochs=1, lora_rank=4))
    tune(config_of(tiny_llm, click_epochs=1, llm_max_text_tokens=3))
    tune(config, rows=ClickRows(rows_of(2).positions, 1 - rows_of(2).clicks))
    tune(config, valid=rows_of(2))
    tune(config, units=([*USERS[:3], "age is 9."], ITEMS))
    assert len({digest_of(made_from) for made_from in made}) == 6


def test_a_damaged_adapter_is_made_anew(tiny_llm, caplog):
    config = config_of(tiny_llm, click_epochs=1)
    folder, facts = tune(config)
    for file in (WEIGHTS, CONFIG):
        (folder / file).write_bytes((folder / file).read_bytes()[:-20])
        model = load_language_model(tiny_llm, "float32", "mean", gpu=-1)
        with pytest.raises(UserError, match=f"adapter .*{folder.name}' cannot be merged into the .* model: .*remove"):
            load_adapted(model, folder)
        assert tune(config) == (folder, facts) and f"{file} is damaged" in caplog.text
    load_adapted(model, folder)


def test_an_adapter_of_another_language_model_is_refused(tiny_llm, tiny_encoder):
    folder, _ = tune(config_of(tiny_llm, click_epochs=1))
    with pytest.raises(UserError, match="cannot be merged into the language model: .*Target modules.*not found"):
        load_adapted(load_language_model(tiny_encoder, "float32", "mean", gpu=-1), folder)
    weights = load_file(folder / WEIGHTS)
    name = next(iter(weights))
    from safetensors.torch import save_file

    save_file({key: value for key, value in weights.items() if key != name}, folder / WEIGHTS)
    with pytest.raises(UserError, match="lora_.* is in one of them alone"):
        load_adapted(load_language_model(tiny_llm, "float32", "mean", gpu=-1), folder)


def test_a_killed_tuning_ends_with_the_adapter_of_an_uninterrupted_one(tiny_llm, monkeypatch):
    """16 steps, saved at 10; killed behind an epoch's end and before the next checkpoint."""
    config = config_of(tiny_llm, click_epochs=4, lora_dropout=0.2, click_learning_rate=0.01)
    monkeypatch.setenv("FUXICTR_LLM_CACHE", "whole")
    whole, facts = tune(config)
    monkeypatch.setenv("FUXICTR_LLM_CACHE", "killed")
    begun, logits = [], ClickBatches.logits

    def counted(*args):
        begun.append(1)
        if len(begun) == 14:
            raise KeyboardInterrupt
        return logits(*args)

    monkeypatch.setattr(ClickBatches, "logits", counted)
    with pytest.raises(KeyboardInterrupt):
        tune(config)
    again, facts_again = tune(config)
    assert len(begun) == 14 + 6 and facts_again == facts
    assert (whole / WEIGHTS).read_bytes() == (again / WEIGHTS).read_bytes()


def test_only_the_rows_drawn_are_asked_for():
    class Texts:
        asked = []

        def __getitem__(self, position):
            self.asked.append(position)
            return f"text {position}"

    positions = np.arange(100_000, dtype=np.int32).reshape(-1, 1)
    rows = ClickRows(positions, (positions[:, 0] % 2).astype(float))
    drawn = draw_rows("train", rows, [Texts()], 50, 7, "click_rows")
    assert len(drawn) == len(set(Texts.asked)) == 50 and drawn.clicks.dtype == np.float32
    assert drawn.texts == [[f"text {position}" for position in Texts.asked]]
    for place, click in zip(drawn.places[:, 0], drawn.clicks, strict=True):
        assert int(drawn.texts[0][place].split()[1]) % 2 == click
    assert draw_rows("train", rows, [Texts()], 50, 8, "click_rows").texts != drawn.texts


def test_a_split_of_one_class_is_named(tiny_llm):
    rows = rows_of(3)
    clicked = ClickRows(rows.positions, np.ones(48))
    with pytest.raises(UserError, match="the 48 rows drawn from the 48 of the train split all have the label 1; raise"):
        tune(config_of(tiny_llm), rows=clicked)
    with pytest.raises(UserError, match="30 rows .* 48 of the validation split .* raise click_valid_rows"):
        tune(config_of(tiny_llm, click_valid_rows=30), valid=clicked)


def test_what_cannot_be_tuned_is_named(tiny_llm, monkeypatch):
    with pytest.raises(UserError, match="LoRA finds nothing to tune .* lora_targets"):
        tune(config_of(tiny_llm, lora_targets=["absent"]))
    with pytest.raises(
        UserError, match=r"\d+ tokens does not fit into the 2048 positions .* lower llm_max_text_tokens"
    ):
        tune(config_of(tiny_llm, llm_max_text_tokens=5000), units=(["red " * 3000, *USERS[1:]], ITEMS))
    with pytest.raises(UserError, match="Click tuning: .* not finite at step 1 .* lower click_learning_rate"):
        monkeypatch.setattr(ClickBatches, "logits", lambda self, model, batch: batch["clicks"] * float("nan"))
        tune(config_of(tiny_llm))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="tuned on clicks in one process; start it without torchrun"):
        tune(config_of(tiny_llm))


@pytest.mark.parametrize("at_most", [20, 1000])
def test_the_order_in_which_a_loader_gives_rows_decides_nothing(at_most):
    rows, order = rows_of(5), np.random.default_rng(1).permutation(80)
    shuffled = ClickRows(rows.positions[order], rows.clicks[order])
    drawn = [draw_rows("train", of, [USERS, ITEMS], at_most, 3, "click_rows") for of in (rows, shuffled)]
    assert len(drawn[0]) == min(at_most, 80) and drawn[0].sha256 == drawn[1].sha256
