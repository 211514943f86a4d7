"""Fused kernels and row-wise updates, against a slow literal version and against torch's dense optimizers."""

import copy
import math
import pickle

import pytest
import torch
from fuxictr.features import FeatureMap
from torch import nn

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.host.batches import synthetic_batch
from fuxictr_llm.registry import find_backbone
from fuxictr_llm.training import build as building
from fuxictr_llm.training import row_updates, table_blocks
from fuxictr_llm.training.checkpoints import _packed, _unpacked
from fuxictr_llm.training.loop import fit
from fuxictr_llm.training.optimizers import clip_gradients, configure_optimizer
from fuxictr_llm.training.step import TrainingStep
from matrix_cells import case_of, cell
from support import params, small_feature_map
from support_loop import make

ROW_OPTIMIZERS = ("adam", "AdamW", "Adagrad", "SGD")
PENALTIES = {"embedding_regularizer": "l1_l2(0.001, 0.03)", "net_regularizer": 0.02}


def model_of(name="DeepFM", **changes):
    """A backbone on tiny data with all types of features, without dropout and BatchNorm.

    In front of a BatchNorm, a bias has a gradient of rounding errors alone, which Adam makes as large as any other.
    """
    settings = {"optimizer": "adam", "learning_rate": 0.05, "optimizer_impl": "fuxictr", **changes}
    model = case_of(find_backbone(name)).build(**settings)
    for module in [*model.modules()]:
        for name_of_child, child in module.named_children():
            if isinstance(child, nn.Dropout | nn.BatchNorm1d):
                setattr(module, name_of_child, nn.Identity())
        if type(module) is nn.Embedding:  # FuxiCTR's 1e-4 leaves gradients that are rounding errors for the most part
            with torch.no_grad():
                module.weight[1:].normal_(std=0.3)
    for group in model.optimizer.param_groups:
        group["weight_decay"] = settings.get("weight_decay", group.get("weight_decay", 0))
    return model


def batches_of(name="DeepFM", count=3):
    return case_of(find_backbone(name)).batches(rows=8 * count, batch_size=8)


def with_rows(model, **settings):
    configure_optimizer(model, {"embedding_update": "rows", **settings})
    return model


def train(model, steps, max_gradient_norm=10.0):
    step = TrainingStep(model.train(), {"max_gradient_norm": max_gradient_norm})
    for index, batch in enumerate(steps):
        step(batch, index)
    return model.state_dict()


def assert_close(states, expected, atol=1e-6):
    for name, value in expected.items():
        torch.testing.assert_close(
            states[name], value, rtol=1e-4, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


def looked_up(model, batch):
    """Table -> the ids of a batch, padding left out, as its modules are given them."""
    ids, hooks = {}, []
    for module in model.modules():
        if type(module) is nn.Embedding:
            hooks.append(
                module.register_forward_hook(
                    lambda module, given, _: ids.setdefault(module.weight, set()).update(
                        set(given[0].flatten().tolist()) - {module.padding_idx}
                    )
                )
            )
    with torch.no_grad():
        model.forward(batch)
    for hook in hooks:
        hook.remove()
    return ids


def literal_update(kind, weight, gradient, state, t, lr, decay):
    """One number's new value, and its state, by the formulas of the papers."""
    if kind == "AdamW":
        weight -= lr * decay * weight
    else:
        gradient += decay * weight
    if kind == "SGD":
        return weight - lr * gradient, state
    if kind == "Adagrad":
        state = (state[0] + gradient**2, 0)
        return weight - lr * gradient / (math.sqrt(state[0]) + 1e-10), state
    m, v = 0.9 * state[0] + 0.1 * gradient, 0.999 * state[1] + 0.001 * gradient**2
    return weight - lr * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8), (m, v)


def literal_training(model, steps, kind, max_norm, lr, decay):
    """Train a plain model by loops over numbers; of tables, the rows of a batch alone exist for a step."""
    states = {}
    for t, batch in enumerate(steps, start=1):
        rows = looked_up(model.train(), batch)
        model.zero_grad()
        model.compute_loss(model.forward(batch), model.get_labels(batch)).backward()
        gradients = {}
        for weight in model.parameters():
            if weight.grad is not None:
                gradient = weight.grad.clone()
                if weight in rows:
                    gradient[[row not in rows[weight] for row in range(len(weight))]] = 0
                gradients[weight] = gradient
        norm = math.sqrt(sum(number**2 for gradient in gradients.values() for number in gradient.flatten().tolist()))
        scale = min(1.0, max_norm / (norm + 1e-6))
        for weight, gradient in gradients.items():
            with torch.no_grad():
                for row in sorted(rows[weight]) if weight in rows else range(len(weight)):
                    numbers, values = weight[row].view(-1), gradient[row].view(-1)
                    for place in range(len(numbers)):
                        key = (id(weight), row, place)
                        numbers[place], states[key] = literal_update(
                            *(kind, numbers[place].item(), values[place].item() * scale),
                            *(states.get(key, (0.0, 0.0)), t, lr, decay),
                        )
    return model.state_dict()


@pytest.mark.parametrize("kind", ROW_OPTIMIZERS)
@pytest.mark.parametrize(("max_norm", "decay", "penalties"), [(10.0, 0.0, {}), (0.05, 0.1, PENALTIES)])
def test_rows_are_updated_as_by_a_literal_version(kind, max_norm, decay, penalties):
    steps, settings = batches_of(), {"optimizer": kind, "learning_rate": 0.05, "weight_decay": decay, **penalties}
    literal = model_of(**settings)
    model = with_rows(copy.deepcopy(literal))
    expected = literal_training(literal, steps, kind, max_norm, 0.05, decay)
    assert_close(train(model, steps, max_norm), expected, atol=2e-5)


@pytest.mark.parametrize("name", ["FM", "LR", "MMoE", "DIN", "FinalMLP", "EulerNet"])
def test_rows_of_other_backbones_are_updated_as_by_a_literal_version(name):
    literal = model_of(name, optimizer="SGD")
    literal._embedding_regularizer, literal._net_regularizer = 0.03, "l1(0.01)"
    model, steps = with_rows(copy.deepcopy(literal)), batches_of(name, 2)
    expected = literal_training(literal, steps, "SGD", 0.5, 0.05, 0.0)
    assert_close(train(model, steps, 0.5), expected, atol=2e-5)


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """The way without waiting for the device: equal ids stay repeated."""
    monkeypatch.setattr(table_blocks, "_can_be_asked", lambda _: False)


@pytest.mark.parametrize("kind", ROW_OPTIMIZERS)
def test_the_way_that_does_not_wait_gives_the_same(kind, as_on_a_gpu, monkeypatch):
    first = model_of(optimizer=kind, **PENALTIES)
    second, steps = with_rows(copy.deepcopy(first)), batches_of()
    states = train(second, steps, 0.05)
    monkeypatch.undo()
    assert_close(states, train(with_rows(first), steps, 0.05))


def one_table(**changes):
    """A model of one table of 6 rows, each of which is in its batch, and the batch."""
    feature_map = FeatureMap("one", "unused")
    feature_map.features = {"item": {"type": "categorical", "source": "", "padding_idx": 0, "vocab_size": 6}}
    feature_map.labels, feature_map.num_fields, feature_map.default_emb_dim = ["click"], 1, 4
    feature_map.set_column_index()
    torch.manual_seed(0)
    model = find_backbone("DNN")(feature_map, **{**params("DNN", net_dropout=0, batch_norm=False), **changes})
    return model, {"item": torch.tensor([1, 2, 2, 3, 4, 5, 5, 5, 0]), "click": torch.arange(9.0) % 2}


@pytest.mark.parametrize("kind", ROW_OPTIMIZERS)
def test_where_a_batch_has_all_rows_rows_and_dense_agree(kind):
    dense, batch = one_table(optimizer=kind, embedding_regularizer=0.1)
    rows = with_rows(copy.deepcopy(dense))
    configure_optimizer(dense, {})
    assert_close(train(rows, [batch] * 5, 0.3), train(dense, [batch] * 5, 0.3))


def test_only_rows_of_the_batch_change_and_padding_stays_zero():
    model, _ = one_table(weight_decay=0.1)
    table = with_rows(model).embedding_layer.embedding_layer.embedding_layers["item"].weight
    before = table.detach().clone()
    train(model, [{"item": torch.tensor([0, 2, 2, 5]), "click": torch.tensor([1.0, 0, 1, 0])}])
    changed = (table != before).any(dim=1).tolist()
    assert changed == [False, False, True, False, False, True]
    assert not table[0].any()
    assert {*(model.optimizer.state[table]["exp_avg"] != 0).any(dim=1).nonzero().flatten().tolist()} == {2, 5}


class Tied(nn.Module):
    """Reads a table's weight otherwise than by lookup, too."""

    def __init__(self, model, table):
        super().__init__()
        self.table, self.loss = table, model.loss_fn

    def __call__(self, prediction, target, reduction):
        return self.loss(prediction, target, reduction=reduction) + 0.1 * self.table.exp().sum()


def test_a_table_that_is_read_otherwise_gets_a_dense_update():
    dense, batch = one_table(embedding_regularizer=0.1)
    rows = copy.deepcopy(dense)
    for model in (dense, rows):
        model.loss_fn = Tied(model, model.embedding_layer.embedding_layer.embedding_layers["item"].weight)
        configure_optimizer(model, {"embedding_update": "rows" if model is rows else "dense"})
    few = {name: column[:3] for name, column in batch.items()}
    assert_close(train(rows, [few] * 3, 0.3), train(dense, [few] * 3, 0.3))


@pytest.mark.parametrize("kind", ROW_OPTIMIZERS)
def test_fused_is_close_to_fuxictrs_and_repeats_its_bits(kind):
    states = []
    for impl in ("fuxictr", "fused", "fused", None):
        model = model_of(optimizer=kind, **PENALTIES)
        configure_optimizer(model, {"optimizer_impl": impl})
        assert bool(model.optimizer.param_groups[0].get("fused")) == (impl != "fuxictr")
        states.append({name: value.clone() for name, value in train(model, batches_of()).items()})
    assert_close(states[1], states[0])
    for other in states[2:]:
        assert all(torch.equal(value, other[name]) for name, value in states[1].items())


def test_groups_of_parameters_and_their_options_stay():
    model = model_of(weight_decay=0.3)
    untrained = model.optimizer.param_groups[0]["params"].pop()
    with_rows(model)
    (group,) = model.optimizer.param_groups
    assert group["weight_decay"] == 0.3
    assert group["lr"] == 0.05
    assert not any(parameter is untrained for parameter in group["params"])
    assert model.lr_decay() == pytest.approx(0.005)
    assert group["lr"] == pytest.approx(0.005)


def test_tables_that_part_later_count_their_own_steps():
    model, steps = with_rows(model_of()), batches_of()
    train(model, steps[:2])
    tables = [*model.optimizer.tables]
    model.loss_fn = Tied(model, tables[0])
    train(model, steps)
    assert {float(model.optimizer.state[table]["step"]) for table in tables} == {5}


def test_after_training_each_table_has_memory_of_its_own(tmp_path):
    model, rows, params = make("DeepFM", None, tmp_path, embedding_update="rows")
    assert model.optimizer.tables
    fit(model, rows, rows.batches, params)
    states = [value for state in model.optimizer.state.values() for value in state.values()]
    for tensor in [*model.optimizer.tables, *states]:
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    train(model, rows.batches)


def test_large_tables_stay_where_they_are(monkeypatch):
    both = [with_rows(model_of()) for _ in range(2)]
    together = train(both[0], batches_of())
    monkeypatch.setattr(row_updates, "ALONE_FROM", 0)
    places = [table.data_ptr() for table in both[1].optimizer.tables]
    assert_close(train(both[1], batches_of()), together, atol=0)
    assert [table.data_ptr() for table in both[1].optimizer.tables] == places


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_and_a_saved_state_go_on_alike(copied):
    steps = batches_of()
    model = with_rows(model_of(**PENALTIES))
    names = [*model.state_dict()]
    train(model, steps[:1])
    copy_of_it, fresh = copied(model), with_rows(model_of(**PENALTIES))
    tensors = {}
    packed = _packed({"model": model.state_dict(), "optimizer": model.optimizer.state_dict()}, tensors)
    saved = _unpacked(packed, tensors)
    fresh.load_state_dict(saved["model"])
    fresh.optimizer.load_state_dict(saved["optimizer"])
    expected = train(model, steps)
    assert [*expected] == names
    for other in (copy_of_it, fresh):
        assert all(torch.equal(value, expected[name]) for name, value in train(other, steps).items())


def test_unapplied_gradients_can_be_saved():
    model, batch = one_table()
    with_rows(model)
    model.compute_loss(model.forward(batch), model.get_labels(batch)).backward()
    gradient, tensors = next(iter(model.optimizer.tables)).grad, {}
    restored = _unpacked(_packed(gradient, tensors), tensors)
    assert gradient.is_sparse
    assert torch.equal(restored.to_dense(), gradient.to_dense())


def built_with_rows():
    feature_map = small_feature_map("DNN")
    given = {**params("DNN"), "seed": 1, "num_threads": 1, "embedding_update": "rows"}
    return building.build(find_backbone("DNN"), feature_map, given), batches_like(feature_map)


def test_fuxictrs_own_step_trains_rows(monkeypatch):
    (first, steps), (second, _) = built_with_rows(), built_with_rows()
    torch.manual_seed(3)
    expected = train(first, steps, 0.5)
    made, before = [], TrainingStep.__init__
    monkeypatch.setattr(TrainingStep, "__init__", lambda step, *args: (made.append(step), before(step, *args))[1])
    torch.manual_seed(3)
    second._max_gradient_norm = 0.5
    second.train()
    for batch in steps:
        second.train_step(batch)
    assert len(made) == 1
    assert all(torch.equal(value, expected[name]) for name, value in second.state_dict().items())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_fuxictrs_own_step_of_a_copy_trains_the_copy(copied):
    model, (batch, *_) = built_with_rows()
    model._max_gradient_norm = 10.0
    model.train_step(batch)
    other, before = copied(model), {name: value.clone() for name, value in model.state_dict().items()}
    other._max_gradient_norm = 1e-9
    other.train_step(batch)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert any(not torch.equal(value, before[name]) for name, value in other.state_dict().items())
    assert other.train_step.model is other


@pytest.mark.parametrize("scale", [0.0, 1e-3, 0.5, 0.9999, 1.0, 1.0001, 7.0, float("inf"), float("nan")])
def test_gradients_are_clipped_as_torch_clips_them_also_where_that_changes_nothing(scale):
    model, _ = one_table()
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    of_all = torch.cat([parameter.grad.flatten() for parameter in model.parameters()]).norm()
    for parameter in model.parameters():
        parameter.grad *= scale / of_all
    other = copy.deepcopy(model)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        theirs.grad = ours.grad.clone()
    clip_gradients(model, 1.0)
    torch.nn.utils.clip_grad_norm_(other.parameters(), 1.0)
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(ours.grad.nan_to_num(), theirs.grad.nan_to_num())
        assert torch.equal(ours.grad.isnan(), theirs.grad.isnan())


def test_a_scaled_loss_gives_the_same_rows():
    plain, batch = one_table(embedding_regularizer=0.1)
    scaled = with_rows(copy.deepcopy(plain))
    with_rows(plain)
    step = TrainingStep(scaled.train(), {"max_gradient_norm": 0.3})
    step.precision.scaler = torch.amp.GradScaler("cpu")
    for index in range(3):
        step(batch, index)
    assert_close(scaled.state_dict(), train(plain, [batch] * 3, 0.3))


@pytest.mark.parametrize("method", ["LLaCTR", "LLMEmb", "ELEC"])
def test_methods_train_with_rows(method):
    one = cell("DeepFM", method)
    model = with_rows(one.build())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = train(model, one.batches())
    assert all(value.isfinite().all() for value in after.values() if value.is_floating_point())
    assert any(not torch.equal(before[name], value) for name, value in after.items() if "embedding_layers" in name)


def test_each_setting_is_in_the_identity():
    def identity(**overrides):
        return load_experiment("DeepFM_movielens100k", overrides=overrides).sha256

    settings = [{}, {"optimizer_impl": "fused"}, {"optimizer_impl": "fuxictr"}, {"embedding_update": "rows"}]
    assert len({identity(**one) for one in settings}) == len(settings)


def test_what_an_optimizer_lacks_is_said():
    with pytest.raises(
        UserError, match="optimizer RMSprop has no row-wise form; take one of Adam, AdamW, Adagrad, SGD"
    ):
        with_rows(model_of(optimizer="RMSprop"))
    with pytest.raises(UserError, match="torch has no fused RMSprop on cpu; it has Adam, AdamW, SGD, Adagrad"):
        configure_optimizer(model_of(optimizer="RMSprop"), {"optimizer_impl": "fused"})
    model = model_of()
    model.regularization_loss = lambda: sum(weight.pow(4).sum() for weight in model.parameters())
    with pytest.raises(UserError, match="no sum of l1 and l2 .* set embedding_update: dense"):
        with_rows(model)


def batches_like(feature_map):
    whole = synthetic_batch(feature_map, rows=24)
    return [{name: column[start : start + 8] for name, column in whole.items()} for start in (0, 8, 16)]
