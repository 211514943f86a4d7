"""ELEC's text head, gain network and row vectors, each on its own."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.distillation import Teacher
from fuxictr_llm.enhancement.anatomy import find_anatomy
from fuxictr_llm.llm.vectors.store import find_or_write
from fuxictr_llm.model_zoo.ELEC import vectors
from fuxictr_llm.model_zoo.ELEC.gain import added_parameters, decay_apart, gain_class, train_only_added
from fuxictr_llm.model_zoo.ELEC.head import VECTOR
from fuxictr_llm.model_zoo.ELEC.history import of_histories
from fuxictr_llm.registry import find_backbone
from fuxictr_llm.training import build as training
from fuxictr_llm.training.networks import ChangedBatches
from support import batches, build, params, small_feature_map, train

BACKBONES = ["DeepFM", "DCNv2", "FinalMLP", "FM"]
WIDTH = 3
SHAPE = {"vector_width": WIDTH, "h_dim": 4, "h_hidden": 5, "h_dropout": 0.0}
every_backbone = pytest.mark.parametrize("name", BACKBONES)
every_place = pytest.mark.parametrize("inject", ["top", "logit", "input"])


def gain(name, inject, **changes):
    make = gain_class(find_backbone(name), inject)
    torch.manual_seed(1)
    return make(small_feature_map(name), **params(name, inject=inject, **SHAPE, **changes))


def with_vectors(name, seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [{**batch, VECTOR: torch.randn(len(batch["click"]), WIDTH, generator=generator)} for batch in batches(name)]


def logits(model, steps):
    return torch.cat([Teacher(model)(batch).logit for batch in steps])


@every_backbone
@every_place
def test_a_gain_network_depends_on_the_vector_and_trains_all_it_adds(name, inject):
    model, steps, others = gain(name, inject), with_vectors(name), with_vectors(name, seed=4)
    plain = {key for key, _ in build(name, name).named_parameters()}
    added = {key: value.clone() for key, value in model.named_parameters() if key not in plain}
    assert added
    train(model, steps)
    moved = dict(model.named_parameters())
    assert all(not torch.equal(value, moved[key]) for key, value in added.items())
    assert not torch.equal(logits(model, steps), logits(model, others))


@every_backbone
def test_a_gain_network_starts_from_its_backbones_weights(name):
    model = gain(name, "top")
    state = build(name, name).state_dict()
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    steps, others = with_vectors(name), with_vectors(name, seed=4)
    same = torch.equal(logits(model, steps), logits(model, others))
    assert same  # all that it adds starts at zero
    plain = build(name, name)
    assert torch.equal(logits(model, steps), logits(plain, batches(name)))


@pytest.mark.parametrize("inject_vector", ["joint", "s"])
def test_the_mixed_representation_is_what_the_teacher_shows_and_what_the_logit_layer_gets(inject_vector):
    model = gain("DNN", "top", inject_vector=inject_vector)
    batch = with_vectors("DNN")[0]
    added = model.enhancement
    with torch.no_grad():
        added.term.weight.normal_()
        added.term.bias.normal_()
    model.eval()
    plain = build("DNN", "DNN").eval()
    plain.load_state_dict(model.backbone_state_dict())
    columns = {key: value for key, value in batch.items() if key != VECTOR}
    own = Teacher(plain)(columns).representation
    vectors = batch[VECTOR]
    if inject_vector == "joint":
        first, second = added.transformation[1], added.transformation[4]
        vectors = torch.relu(vectors @ first.weight.T + first.bias) @ second.weight.T + second.bias
    mixed = torch.relu(torch.cat([own, vectors], dim=1) @ added.mix.weight.T + added.mix.bias)
    expected = own + mixed @ added.term.weight.T + added.term.bias
    shown = Teacher(model)(batch)
    assert torch.allclose(shown.representation, expected, atol=1e-6)
    head = model.mlp.mlp[-1]
    assert torch.allclose(shown.logit, expected @ head.weight.T + head.bias, atol=1e-5)


@every_place
def test_what_is_added_decays_apart_from_the_backbone(inject):
    model = gain("DeepFM", inject)
    added = added_parameters(model)
    decay_apart(model, 0.25)
    groups = model.optimizer.param_groups
    assert sum(len(group["params"]) for group in groups) == len([*model.parameters()])
    assert {id(weight) for weight in groups[-1]["params"]} == {id(weight) for weight in added}
    assert [group["weight_decay"] for group in groups] == [0, 0.25]
    train(model, with_vectors("DeepFM"))


@every_backbone
@pytest.mark.parametrize("decay", [0.0, 0.25])
def test_a_fixed_backbone_stays_as_it_is(name, decay):
    model = gain(name, "top")
    train_only_added(model)
    decay_apart(model, decay)
    before = {key: value.clone() for key, value in model.backbone_state_dict().items()}
    added = {key: value.clone() for key, value in model.enhancement.named_parameters()}
    train(model, with_vectors(name))
    assert all(
        torch.equal(value, before[key])
        for key, value in model.backbone_state_dict().items()
        if "num_batches" not in key
    )
    moved = dict(model.enhancement.named_parameters())
    assert all(not torch.equal(value, moved[key]) for key, value in added.items())
    assert [group["weight_decay"] for group in model.optimizer.param_groups] == [decay]


def test_a_column_of_vectors_enters_at_the_scale_of_the_embeddings_beside_it():
    model = gain("DeepFM", "input", inject_vector="s")
    table = model.embedding_layer.embedding_layer
    embedded = table.feature_encoders[VECTOR](with_vectors("DeepFM")[0][VECTOR])
    assert embedded.shape[1] == 4 and 0.2 < embedded.std() / table.embedding_layers["item"].weight[1:].std() < 5


def test_a_backbone_without_a_representation_says_that_it_takes_the_logit(caplog):
    model = gain("FM", "top")
    assert model.enhancement.mix is None and model.enhancement.term is not None
    assert "inject: top: FM has no representation in front of its logit" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        gain("DeepFM", "top")
    assert not caplog.text


def test_a_column_of_vectors_is_the_gain_networks_alone():
    feature_map = small_feature_map("DeepFM")
    before = dict(feature_map.features), feature_map.num_fields
    model = gain("DeepFM", "input")
    assert (dict(feature_map.features), feature_map.num_fields) == before
    assert model.feature_map.num_fields == before[1] + 1 and VECTOR in find_anatomy(model).fields


@every_place
def test_a_gain_network_of_several_tasks_has_as_many_as_its_backbone(inject):
    feature_map = small_feature_map("DeepFM")
    feature_map.labels = ["click", "like"]
    settings = {**params("DeepFM"), "num_threads": 1, "seed": 1}
    settings |= {"task": ["binary_classification"] * 2, "loss": ["binary_crossentropy"] * 2}
    make = gain_class(find_backbone("ShareBottom"), inject)
    model = training.build(make, feature_map, {**settings, **SHAPE, "inject": inject})
    steps = [{**batch, "like": 1 - batch["click"]} for batch in with_vectors("DeepFM")]
    train(model, steps)
    assert Teacher(model)(steps[0]).logit.shape == (len(steps[0]["click"]), 2)


class LinearHead:
    """Stands for a head: h = s A, which another may say in other directions."""

    device = torch.device("cpu")

    def __init__(self, matrix, shift=0.0):
        self.matrix, self.shift = matrix, shift

    def h(self, s):
        return s @ self.matrix + self.shift


@pytest.fixture
def raw():
    """Forty rows with a random vector each; the last ten are not in train."""
    s = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    keys = torch.randint(-(2**62), 2**62, (40,), generator=torch.Generator().manual_seed(1))
    positions = torch.stack([torch.arange(40) % 8, torch.arange(40) // 8], dim=1).int()
    train_rows = torch.arange(40) < 30
    index = SimpleNamespace(keys=keys, positions=positions, train_rows=train_rows)
    return vectors.RowVectors(index, 6, lambda rows: s[rows])


def test_heads_that_differ_by_a_rotation_and_a_shift_are_aligned(raw):
    matrix = torch.randn(6, WIDTH)
    reference = LinearHead(matrix)
    turns = [torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q for _ in range(3)]
    heads = [LinearHead(matrix @ turn, shift) for shift, turn in enumerate(turns)]
    rows = torch.arange(40)
    aligned = vectors.of_heads(reference, heads, raw)(rows)
    assert torch.allclose(aligned, vectors.of_head(reference, raw)(rows), atol=1e-4)


def test_a_row_has_the_head_of_its_fold(raw):
    matrix = torch.randn(6, WIDTH)
    heads = [LinearHead(matrix), LinearHead(matrix * 3)]
    rows = torch.arange(40)
    folds = vectors.fold_of(raw.index.positions, 2)
    assert 5 < folds.sum() < 35
    h, plain = vectors.of_heads(heads[0], heads, raw)(rows), vectors.of_head(heads[0], raw)(rows)
    same = torch.isclose(h, plain, atol=1e-4).all(dim=1)
    assert torch.equal(same, folds == 0)


def test_folds_are_of_even_size_and_each_unit_decides():
    positions = torch.cartesian_prod(torch.arange(60), torch.arange(50)).int()
    counts = vectors.fold_of(positions, 5).bincount(minlength=5)
    assert counts.min() > 500 and counts.max() < 700
    of_pairs = vectors.fold_of(positions, 5).view(60, 50)
    assert all(len(line.unique()) > 1 for line in (*of_pairs, *of_pairs.T))


class Unit:
    """Stands for a unit's standardized vectors, fitted on the first thirty."""

    dim = 6

    def __init__(self, empty=None):
        self.vectors = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
        self.fitted, self.empty = torch.arange(30), empty

    def gather(self, positions):
        return self.vectors[positions]


def test_components_are_fitted_on_texts_of_train_rows_alone():
    unit, rows = Unit(), torch.arange(40)
    found = vectors.Reduced(unit, WIDTH).gather(rows).numpy()
    scores = PCA(WIDTH, svd_solver="full").fit(unit.vectors[:30].numpy()).transform(unit.vectors.numpy())
    expected = scores / np.sqrt(np.mean(scores[:30] ** 2))
    for column in range(WIDTH):
        sign = np.sign((found[:, column] * expected[:, column]).sum())
        assert np.allclose(found[:, column], sign * expected[:, column], atol=1e-4)
    wider = vectors.Reduced(unit, 8).gather(rows)
    assert wider.shape == (40, 8)
    assert not wider[:, 6:].any()
    assert wider[:, :6].any(dim=0).all()


def test_a_text_that_is_not_there_has_no_components_and_texts_are_found_in_any_order():
    reduced = vectors.Reduced(Unit(empty=35), WIDTH)
    found = reduced.gather(torch.tensor([35, 3, 35, 0, 3]))
    assert not found[[0, 2]].any() and torch.equal(found[1], found[4])
    assert torch.allclose(found[[1, 3]], reduced.gather(torch.tensor([3, 0])))


def test_placebos_have_the_norms_of_the_vectors_and_nothing_of_which_text_has_which():
    told = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    told[7] = 0
    store = find_or_write("test", {"placebo": "told"}, 40, lambda start, stop: told[start:stop].numpy())
    rows = torch.arange(40)
    noise, shuffled = (vectors.placebo_of([store], kind, 5)[0] for kind in ("noise", "shuffled"))
    assert torch.allclose(noise.gather(rows).norm(dim=1), told.norm(dim=1), rtol=1e-4)
    assert abs(torch.nn.functional.cosine_similarity(noise.gather(rows), told).mean()) < 0.4
    handed = shuffled.gather(rows)
    assert (handed == told).all(dim=1).sum() < 5
    assert torch.equal(handed.sort(dim=0).values, told.sort(dim=0).values)
    assert len({store.sha256, noise.sha256, shuffled.sha256, vectors.placebo_of([store], "noise", 6)[0].sha256}) == 4


@pytest.mark.parametrize("kind", ["noise", "shuffled"])
def test_placebos_of_two_units_have_nothing_in_common(kind):
    told = torch.randn(400, 6, generator=torch.Generator().manual_seed(0))
    store = find_or_write("test", {"placebo": "units"}, 400, lambda start, stop: told[start:stop].numpy())
    user, item = (placebo.gather(torch.arange(400)) for placebo in vectors.placebo_of([store, store], kind, 5))
    assert abs(torch.nn.functional.cosine_similarity(user, item).mean()) < 0.1
    assert (user == item).all(dim=1).sum() < 10


def test_histories_of_test_rows_alone_are_refused():
    own, train_rows = torch.arange(4), torch.tensor([True, True, False, False])

    def fitted(*with_history):
        texts = torch.where(torch.isin(own, torch.tensor(with_history)), own + 4, -1)[:, None]
        told = SimpleNamespace(unit=0, own=own, train_rows=train_rows, items_of=lambda rows: texts[rows])
        return of_histories(told, SimpleNamespace(stores=[Unit()]), WIDTH)(own)

    assert fitted(1, 2, 3).isfinite().all()
    with pytest.raises(UserError, match="text_history: no train row has a history; name another column"):
        fitted(2, 3)


def test_stored_vectors_are_those_computed_online(raw):
    of_rows = vectors.of_head(LinearHead(torch.randn(6, WIDTH)), raw)
    store = find_or_write("row_vectors", {"a": 1}, 40, lambda start, stop: of_rows(torch.arange(start, stop)).numpy())
    rows = torch.tensor([3, 39, 3, 0])
    assert torch.allclose(vectors.in_store(raw.index, store).of_rows(rows), of_rows(rows), atol=1e-6)


class Loader(list):
    num_samples, num_blocks = 6, 1


def test_batches_of_which_nothing_is_left_are_stood_in_for():
    rows = [{"x": torch.tensor(part)} for part in ([1, 2], [4, 6], [3, 4])]
    seeing = {"change": lambda batch: {"y": batch["x"] * 10}, "keep": lambda batch: batch["x"] % 2 == 1}
    odd = ChangedBatches(Loader(rows), **seeing)
    assert len(odd) == 3 and [batch["y"].tolist() for batch in odd] == [[10], [10], [30]]
    with pytest.raises(UserError, match="nothing is left of the first batch of 2 rows; give a larger batch_size"):
        next(iter(ChangedBatches(Loader(rows[1:]), **seeing)))
