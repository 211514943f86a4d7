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
from fuxictr_llm.model_zoo.CTRL.alignment import Alignment, contrastive_loss, similarities
from fuxictr_llm.model_zoo.CTRL.config import CTRLConfig
from fuxictr_llm.model_zoo.CTRL.training import AlignmentTraining, TextsOfRows
from fuxictr_llm.serving.export import export_run
from fuxictr_llm.serving.load import load_model
from fuxictr_llm.training.checkpoints import Checkpoints
from support import batches, enhanced
from support_keys import LANGUAGE_MODEL, LORA

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


def test_the_gradient_of_similarities_is_that_of_the_maximum():
    table, text = (torch.randn(N, M, D, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(similarities, (table, text))
    assert torch.autograd.gradcheck(lambda some, others: similarities(some, others)[0], (table, text))
    assert torch.autograd.gradcheck(lambda some, others: similarities(some, others)[1], (table, text))


def test_one_row_has_no_loss_and_equal_similarities_that_of_guessing(sides):
    table, text = sides
    assert contrastive_loss(*similarities(table[:1], text[:1]), tau=0.7).item() == 0
    same = similarities(table[:1].expand(N, M, D), text[:1].expand(N, M, D))
    assert contrastive_loss(*same, tau=0.7).item() == pytest.approx(math.log(N))


class Waves(TextsOfRows):
    def __call__(self, columns):
        rows = columns["item"]
        return torch.sin(rows.view(-1, 1).float() * torch.arange(1.0, 7.0)), rows


def aligned(name, flip=False, **changes):
    model = enhanced(name, Alignment, text_width=6, align_width=5, **changes)
    steps = [{**batch, "click": 1 - batch["click"]} if flip else batch for batch in batches(name)]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    return model, before, AlignmentTraining(model, steps, Waves(), 2, learning_rate=0.01, warmup=0.5).run()


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


class Killed(BaseException):
    """A process that ends."""


def kill_in_step(monkeypatch, number):
    """From now on, stage 1 ends in this step of a process."""
    step, done = AlignmentTraining._step, []

    def killed(self, batch):
        done.append(1)
        if len(done) == number:
            raise Killed
        return step(self, batch)

    monkeypatch.setattr(AlignmentTraining, "_step", killed)


class Steps:
    """A loader of 4 batches, in another order each epoch; it may start within an epoch."""

    starts_anywhere = True

    def __init__(self, name):
        self.batches, self.epoch, self.first, self.read = batches(name, count=4), 0, 0, []

    def __len__(self):
        return 4

    def start_at(self, epoch, batch):
        self.epoch, self.first = epoch, batch

    def __iter__(self):
        for place in range(self.first, 4):
            self.read.append((self.epoch, place))
            yield self.batches[(place + self.epoch) % 4]


class Noise(Waves):
    """Drawn anew for every batch."""

    def __init__(self):
        self.draw = torch.Generator().manual_seed(0)

    def __call__(self, columns):
        vectors, rows = super().__call__(columns)
        return vectors + torch.randn(vectors.shape, generator=self.draw), rows

    def training_state(self):
        return {"draw": self.draw.get_state()}

    def load_training_state(self, state):
        self.draw.set_state(state["draw"])


@pytest.mark.parametrize(
    ("minutes", "first"), [(0, (1, 2)), (60, (1, 0))], ids=["within its epoch", "at the begin of its epoch"]
)
def test_a_killed_alignment_goes_on_and_ends_with_the_same_bits(minutes, first, monkeypatch, tmp_path):
    def start(name, minutes):
        model, steps = enhanced("DeepFM", Alignment, text_width=6, align_width=5, net_dropout=0.3), Steps("DeepFM")
        training = AlignmentTraining(model, steps, Noise(), 3, learning_rate=0.01, warmup=0.8)
        torch.manual_seed(3)  # of dropout
        with Checkpoints(tmp_path / name, {"all": "of it"}, minutes) as checkpoints:
            return model, training.run(checkpoints), steps.read

    model, losses, read = start("whole", None)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_in_step(patch, 7)  # the third of the second epoch
        start("half", minutes)
    torch.manual_seed(99)
    resumed, again, rest = start("half", minutes)
    assert rest == read[read.index(first) :] and again == losses and len(losses) == 3
    for name, value in model.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_a_killed_run_with_lora_goes_on_and_ends_with_the_same_bits(ctrl, monkeypatch, tmp_path):
    changes = {"checkpoint_minutes": 0, "tuning": "lora", "align_epochs": 2, "align_batch_size": 450}
    whole = ctrl(**changes)
    monkeypatch.setenv("FUXICTR_LLM_CACHE", str(tmp_path / "other"))
    with monkeypatch.context() as patch, pytest.raises(Killed):
        kill_in_step(patch, 4)
        ctrl(**changes)
    (left,) = (tmp_path / "other" / stages.KIND).glob("*.checkpoint")
    with monkeypatch.context() as patch:
        kill_in_step(patch, 2)  # one step is left
        resumed = ctrl(**changes)
    notes = [result.record["notes"]["alignment"] for result in (whole, resumed)]
    assert notes[0] == notes[1] and not left.exists()  # the digest of the weights, too


def test_lora_starts_from_the_frozen_vectors_and_all_of_it_is_trained(ctrl, monkeypatch, tmp_path):
    """Gradients reach every LoRA weight; the language model's own stay; the run serves the plain backbone."""
    seen, step = [], AlignmentTraining._step

    def watched(self, batch):
        tuned = self.texts._tuned
        if tuned is None:  # of the frozen run
            return step(self, batch)
        if not seen:
            own = {name: value.clone() for name, value in tuned.language_model.model.named_parameters()}
            vectors = [tuned(unit, torch.arange(3)) for unit in range(len(tuned.units))]
            frozen = [store.gather(torch.arange(3)) for store in self.texts.units]
            assert all(torch.allclose(*pair, atol=1e-4) for pair in zip(vectors, frozen, strict=True))
            seen.append((own, tuned))
        loss = step(self, batch)
        for name, weight in tuned.named_parameters().items():
            assert weight.grad is not None and ("lora_B" not in name or weight.grad.abs().sum() > 0), name
        return loss

    monkeypatch.setattr(AlignmentTraining, "_step", watched)
    result = ctrl(tuning="lora", lora_dropout=0.0, align_epochs=2)
    ((before, tuned),) = seen
    for name, weight in tuned.language_model.model.named_parameters():
        assert torch.equal(weight, before[name]) == ("lora_" not in name), name
    assert len(tuned.named_parameters()) == 2 * 2 * 2  # A and B of q_proj and v_proj in two layers
    assert result.model.state_dict().keys() == build_model(result.run).state_dict().keys()
    frozen = ctrl(align_epochs=2).record
    assert result.record["notes"]["alignment"]["losses"] != frozen["notes"]["alignment"]["losses"]
    assert result.record["parameters"] == frozen["parameters"]
    assert "tune and align" in result.record["stages"] and "train alignment" in frozen["stages"]
    served = export_run(f"checkpoints/shop/{result.record['model_id']}", tmp_path / "served")
    assert not [path for path in served.rglob("*") if "lora" in path.name or "adapter" in path.name]
    seen.clear()
    again = ctrl(tuning="lora", lora_dropout=0.0, align_epochs=2)
    assert not seen and again.record["metrics"] == result.record["metrics"]  # cached


OTHERS = {
    **LANGUAGE_MODEL,
    **dict.fromkeys(("align_epochs", "align_batch_size", "align_width", "sub_spaces", "ray_workers"), 2),
    **dict.fromkeys(("align_learning_rate", "align_warmup", "align_tau"), 0.25),
    **{"align_normalize": True, "mask_equal": True, "texts": "noise", "llm_max_text_tokens": 8, "encoder": "ray"},
    **{
        "tuning": "lora",
        **LORA,
        "text_units": "row",
        "text_fields": ["city"],
        "value_texts": {},
        "text_vectors": "folder",
        "control_seed": 5,
    },
}


def test_the_key_of_an_aligned_backbone_has_all_that_changes_it(run, configs, llm):
    experiment = load_experiment("DeepFM_CTRL_shop", configs, overrides=llm)
    prepared = prepare_data(experiment, "unused")

    def key(rows="a", vectors="b", params=(), **changes):
        prepared.params |= dict(params)
        index, store = SimpleNamespace(sha256=rows), SimpleNamespace(sha256=vectors)
        return digest_of(stages._made_from(CTRLConfig(**(llm | changes)), prepared, index, [store]))

    assert {field.name for field in fields(CTRLConfig)} <= OTHERS.keys()
    unseen = {*stages.OF_TEXTS, *LORA}  # vectors have digests of their own; without tuning, LoRA's settings do nothing
    assert {name for name, value in OTHERS.items() if key(**{name: value}) == key()} <= unseen
    assert len({key(), key(rows="c"), key(vectors="c")}) == 3
    tuned = {"tuning": "lora"}
    of_model = {**LORA, "llm_dtype": "bfloat16", "llm_pooling": "last"}
    keys = [key(**tuned, **{name: value}) for name, value in of_model.items()]
    assert len({key(**tuned), *keys}) == len(of_model) + 1
    before = key()
    assert key(params={"learning_rate": 0.5, "epochs": 9}) == before != key(params={"seed": 11})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expid": "LR_CTRL_shop"}, "CTRL needs a representation, and LR shows none"),
        ({"texts": "words"}, "config key 'texts' is 'words'"),
        ({"sub_spaces": 0}, "config key 'sub_spaces' is 0"),
        ({"sub_spaces": 257}, "config key 'sub_spaces' is 257"),
        ({"align_batch_size": 1}, "config key 'align_batch_size' is 1"),
        ({"tuning": "lora", "text_vectors": "folder"}, "text_vectors are frozen, and tuning: lora trains the language"),
        ({"tuning": "lora", "texts": "noise"}, "texts: noise asks no language model, so there is nothing to tune"),
        ({"text_fields": ["town"]}, "unknown column 'town' in 'text_fields'"),
    ],
)
def test_bad_settings_are_one_line(ctrl, changes, message):
    with pytest.raises(UserError, match=message):
        ctrl(**changes)
