"""CTRL: its equations against slow literal ones, and whole runs on a small data set with a tiny language model."""

import math
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import digest_of
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.loader import make_loaders
from fuxictr_llm.experiment.preparation import prepare_data
from fuxictr_llm.experiment.run import build_model
from fuxictr_llm.model_zoo.CTRL import stages
from fuxictr_llm.model_zoo.CTRL.alignment import Alignment, align, contrastive_loss, similarities
from fuxictr_llm.model_zoo.CTRL.config import CTRLConfig
from fuxictr_llm.serving.export import export_run
from fuxictr_llm.serving.load import load_model
from support import batches, enhanced
from support_keys import LANGUAGE_MODEL

N, M, D = 5, 3, 4


@pytest.fixture
def sides():
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(N, M, D, generator=generator, dtype=torch.float64) for _ in range(2))


def literal_similarity(some, others, i, j):
    """`sum_a max_b <some_ia, others_jb>`."""
    return sum(max(float(some[i, a] @ others[j, b]) for b in range(M)) for a in range(M))


def literal_loss(some, others, tau, negatives):
    """Cross entropy of finding the row's own among others, the mean over rows; `negatives(i)`: of row i."""
    losses = []
    for i in range(N):
        scores = {j: math.exp(literal_similarity(some, others, i, j) / tau) for j in [i, *negatives(i)]}
        losses.append(-math.log(scores[i] / sum(scores.values())))
    return sum(losses) / N


def test_similarities_are_those_of_a_double_loop_and_have_a_direction(sides):
    table, text = sides
    to_text, to_table = similarities(table, text)
    for i in range(N):
        for j in range(N):
            assert to_text[i, j].item() == pytest.approx(literal_similarity(table, text, i, j))
            assert to_table[i, j].item() == pytest.approx(literal_similarity(text, table, i, j))
    assert not torch.allclose(to_text, to_table.T)
    one = similarities(table[:, :1], text[:, :1])
    assert torch.allclose(one[0], table[:, 0] @ text[:, 0].T) and torch.equal(one[0], one[1].T)


@pytest.mark.parametrize("masked", [False, True])
def test_the_loss_is_that_of_a_double_loop(sides, masked):
    table, text = sides
    numbers = torch.tensor([0, 1, 0, 2, 1])
    equal = numbers[:, None] == numbers if masked else None

    def negatives(i):
        return [j for j in range(N) if j != i and not (masked and numbers[i] == numbers[j])]

    loss = contrastive_loss(*similarities(table, text), tau=0.7, equal=equal)
    literal = (literal_loss(text, table, 0.7, negatives) + literal_loss(table, text, 0.7, negatives)) / 2
    assert loss.item() == pytest.approx(literal)
    order = torch.tensor([3, 0, 4, 1, 2])
    if not masked:
        permuted = contrastive_loss(*similarities(table[order], text[order]), tau=0.7)
        assert permuted.item() == pytest.approx(loss.item())


def test_one_row_has_no_loss_and_equal_similarities_that_of_guessing(sides):
    table, text = sides
    assert contrastive_loss(*similarities(table[:1], text[:1]), tau=0.7).item() == 0
    same = similarities(table[:1].expand(N, M, D), text[:1].expand(N, M, D))
    assert contrastive_loss(*same, tau=0.7).item() == pytest.approx(math.log(N))


def texts_of(columns):
    rows = columns["item"]
    return torch.sin(rows.view(-1, 1).float() * torch.arange(1.0, 7.0)), rows


def aligned(name, flip=False, **changes):
    model = enhanced(name, Alignment, text_width=6, align_width=5, **changes)
    steps = [{**batch, "click": 1 - batch["click"]} if flip else batch for batch in batches(name)]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    return model, before, align(model, steps, texts_of, epochs=2, learning_rate=0.01, warmup=0.5)


@pytest.mark.parametrize(("name", "behind"), [("DeepFM", ("mlp.mlp.8.", "fm.lr_layer.")), ("FM", ("fm.lr_layer.",))])
def test_stage_1_reads_no_label_and_moves_all_but_what_is_behind_the_representation(name, behind):
    model, before, losses = aligned(name, mask_equal=True, align_normalize=True)
    assert len(losses) == 2 and losses[1] < losses[0]
    still = {key for key, value in model.named_parameters() if torch.equal(value, before[key])}
    assert still == {key for key, _ in model.named_parameters() if key.startswith(behind)}
    other, _, _ = aligned(name, flip=True, mask_equal=True, align_normalize=True)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in model.state_dict().items())


@pytest.fixture
def ctrl(run, llm):
    small = {**llm, "align_width": 8, "align_batch_size": 64, "align_learning_rate": 0.01, "epochs": 1}
    return lambda expid="DeepFM_CTRL_shop", **changes: run(expid, **{**small, **changes})


def predicted(result):
    return result.model.predict(make_loaders(result.run.feature_map, result.run.params, "test"))


def test_a_run_is_aligned_once_and_serves_the_plain_backbone(ctrl, run, tmp_path):
    result = ctrl(align_epochs=4)
    plain = run("DeepFM_shop", epochs=1)
    assert not np.array_equal(predicted(result), predicted(plain))
    assert result.record["parameters"] == plain.record["parameters"]
    assert result.model.state_dict().keys() == plain.model.state_dict().keys()
    note = result.record["notes"]["alignment"]
    assert note["losses"][-1] < note["losses"][0] < 2 * note["log_rows"]
    start = result.model.enhancement.backbone_start(result.run)
    fresh = build_model(result.run).state_dict()
    assert start.keys() == fresh.keys()
    moved = {key for key, value in start.items() if not torch.equal(value, fresh[key])}
    assert any("embedding_layer" in key for key in moved) and "mlp.mlp.4.weight" not in moved
    served = load_model(export_run(f"checkpoints/shop/{result.record['model_id']}", tmp_path / "served"))
    assert served.config["folded"] is None

    noise = ctrl(align_epochs=4, texts="noise").record["notes"]["alignment"]
    assert noise["losses"][-1] > note["losses"][-1]  # there is nothing to find
    shuffled = ctrl(align_epochs=4, texts="shuffled")
    assert shuffled.record["notes"]["alignment"]["losses"] != note["losses"]


def test_without_epochs_it_is_the_plain_backbone(ctrl, run):
    off, plain = ctrl(align_epochs=0), run("DeepFM_shop", epochs=1)
    assert np.array_equal(predicted(off), predicted(plain))
    assert off.record["metrics"] == plain.record["metrics"] and "alignment" not in off.record["notes"]


OTHERS = {
    **LANGUAGE_MODEL,
    **dict.fromkeys(("align_epochs", "align_batch_size", "align_width", "sub_spaces", "ray_workers"), 2),
    **dict.fromkeys(("align_learning_rate", "align_warmup", "align_tau"), 0.25),
    **{"align_normalize": True, "mask_equal": True, "texts": "noise", "llm_max_text_tokens": 8, "encoder": "ray"},
    **{"text_units": "row", "text_fields": ["city"], "value_texts": {}, "text_vectors": "folder", "control_seed": 5},
}


def test_the_key_of_an_aligned_backbone_has_all_that_changes_it(run, configs, llm):
    experiment = load_experiment("DeepFM_CTRL_shop", configs, overrides=llm)
    prepared = prepare_data(experiment, "unused")

    def key(rows="a", vectors="b", params=(), **changes):
        prepared.params |= dict(params)
        index, store = SimpleNamespace(sha256=rows), SimpleNamespace(sha256=vectors)
        return digest_of(stages._made_from(CTRLConfig(**changes), prepared, index, [store]))

    assert {field.name for field in fields(CTRLConfig)} <= OTHERS.keys()
    unseen = {*stages.OF_TEXTS}  # their vectors have digests of their own
    assert {name for name, value in OTHERS.items() if key(**{name: value}) == key()} <= unseen
    assert len({key(), key(rows="c"), key(vectors="c")}) == 3
    before = key()
    assert key(params={"learning_rate": 0.5, "epochs": 9}) == before != key(params={"seed": 11})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expid": "LR_CTRL_shop"}, "CTRL needs a representation, and LR shows none"),
        ({"texts": "words"}, "config key 'texts' is 'words'"),
        ({"sub_spaces": 0}, "config key 'sub_spaces' is 0"),
        ({"align_batch_size": 1}, "config key 'align_batch_size' is 1"),
        ({"text_fields": ["town"]}, "unknown column 'town' in 'text_fields'"),
    ],
)
def test_bad_settings_are_one_line(ctrl, changes, message):
    with pytest.raises(UserError, match=message):
        ctrl(**changes)


def test_it_is_not_aligned_by_several_processes(ctrl, monkeypatch):
    monkeypatch.setattr(stages, "under_torchrun", lambda: True)
    with pytest.raises(UserError, match="CTRL aligns in one process; start it without torchrun"):
        ctrl()
