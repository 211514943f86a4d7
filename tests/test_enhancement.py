"""The five invariants that `fuxictr_llm/enhancement.py` states, over every backbone."""

import copy
import pickle

import pytest
import torch
from torch.utils.hooks import RemovableHandle

from fuxictr_llm.anatomy import find_anatomy
from fuxictr_llm.enhancement import Enhancement, enhance
from fuxictr_llm.errors import UserError
from fuxictr_llm.registry import find_backbone
from support import BACKBONES, AllTaps, Idle, batches, build, enhanced, predictions, train

every_backbone = pytest.mark.parametrize("name", BACKBONES)


@every_backbone
def test_an_idle_method_leaves_weights_and_training_bit_identical(name):
    plain, idle = build(name, name), enhanced(name, Idle)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, idle.state_dict()[key]), key
    steps = batches(name)
    assert train(plain, steps) == train(idle, steps)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, idle.state_dict()[key]), key
    assert all(parameter.grad is None for parameter in idle.enhancement.parameters())
    assert torch.equal(predictions(plain, steps), predictions(idle, steps))


@every_backbone
def test_every_parameter_of_an_active_method_is_optimized_and_moves(name):
    model = enhanced(name)
    before = {key: value.clone() for key, value in model.enhancement.named_parameters()}
    train(model, batches(name, 1))
    for key, value in model.enhancement.named_parameters():
        assert value.grad is not None and value.grad.abs().sum() > 0, key
        assert not torch.equal(value, before[key]), key


@every_backbone
def test_the_backbone_part_loads_strictly_into_the_plain_backbone(name):
    model, plain = enhanced(name), build(name, name, seed=5)
    train(model, batches(name, 1))
    plain.load_state_dict(model.backbone_state_dict(), strict=True)
    for key, value in plain.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key


@every_backbone
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_equal_trainable_and_independent(name, duplicate):
    model, steps = enhanced(name), batches(name)
    train(model, steps)
    twin = duplicate(model)
    assert type(twin) is type(model)
    assert torch.equal(predictions(model, steps), predictions(twin, steps))
    before = predictions(model, steps)
    with torch.no_grad():
        twin.enhancement.weight.add_(5.0)
    assert torch.equal(predictions(model, steps), before)
    assert not torch.equal(predictions(twin, steps), before)
    shapes = dict(model.enhancement.shapes)
    model.enhancement.shapes.clear()
    train(twin, steps)
    assert model.enhancement.shapes == {} and twin.enhancement.shapes == shapes


def test_hooks_of_others_do_not_displace_those_of_an_unpickled_model(monkeypatch):
    model, steps = enhanced("DeepFM"), batches()
    expected, dumped = predictions(model, steps), pickle.dumps(model)
    monkeypatch.setattr(RemovableHandle, "next_id", 0)  # as in a new process
    again = pickle.loads(dumped)
    for _ in range(50):
        again.output_activation.register_forward_pre_hook(lambda *_: None)
        again.embedding_layer.embedding_layer.register_forward_hook(lambda *_: None)
    assert torch.equal(predictions(again, steps), expected)


@every_backbone
def test_states_are_saved_and_loaded(name, tmp_path):
    model, other, steps = enhanced(name), enhanced(name, seed=9), batches(name)
    train(model, steps)
    model.save_weights(tmp_path / "a.model")
    other.load_weights(tmp_path / "a.model")
    assert torch.equal(predictions(model, steps), predictions(other, steps))


@every_backbone
def test_the_loss_tap_is_silent_at_inference(name):
    model, steps = enhanced(name), batches(name, 1)
    predictions(model, steps)
    assert "loss" not in model.enhancement.shapes
    assert "seen" not in model.forward(steps[0])


def test_fuxictrs_fit_tells_the_epoch_and_when_weights_are_kept(tmp_path):
    class Listens(Idle):
        def epoch(self, index):
            told.append(index)

        def kept(self):
            told.append("kept")

    told, steps = [], batches()
    model = enhanced("FM", Listens, learning_rate=1e-12)
    model.checkpoint = str(tmp_path / "a.model")
    model.fit(steps, epochs=3, validation_data=steps)
    assert told == [0, "kept", 1, 2]


@every_backbone
def test_forward_compiles_without_graph_breaks(name):
    for model in (enhanced(name), enhanced(name, Idle)):
        torch.compiler.reset()
        batch = batches(name, 1)[0]
        model.eval()
        with torch.no_grad():
            compiled = torch.compile(model.forward, backend="eager", fullgraph=True)(batch)["y_pred"]
            assert torch.equal(compiled, model.forward(batch)["y_pred"])
        model.train()
        torch.compile(model.forward, backend="eager", fullgraph=True)(batch)


def test_the_added_loss_counts_in_training_only():
    class Ten(Enhancement):
        def loss(self, seen, y_true):
            return seen.logit.sum() * 0 + 10

    model, plain, steps = enhanced("FM", Ten), build("FM", "FM"), batches(count=1)
    assert train(model, steps)[0] == pytest.approx(train(plain, steps)[0] + 10)
    model.eval()
    plain.load_state_dict(model.backbone_state_dict())
    plain.eval()
    y_true = model.get_labels(steps[0])
    losses = [m.compute_loss(m.forward(steps[0]), y_true).item() for m in (model, plain)]
    assert losses[0] == losses[1]


def test_regularizers_of_backbone_and_method_are_apart():
    plain, idle = build("FM", "FM"), enhanced("FM", Idle)
    assert torch.equal(plain.regularization_loss(), idle.regularization_loss())
    own = enhanced("FM", Idle, method_regularizer=0.5)
    squares = sum((parameter**2).sum() for parameter in own.enhancement.parameters())
    assert torch.allclose(own.regularization_loss(), plain.regularization_loss() + 0.25 * squares)
    assert all(parameter.requires_grad for parameter in own.enhancement.parameters())


def test_a_model_without_y_pred_says_so():
    class NoOutput(find_backbone("FM")):
        def forward(self, inputs):
            return {"prediction": super().forward(inputs)["y_pred"]}

    with pytest.raises(Exception, match="cannot be tapped: its output has no .y_pred."):
        build(enhance(NoOutput, Idle), "FM")


def test_a_second_method_is_refused():
    with pytest.raises(UserError, match="FM_Idle has a method already, and a model has one; give 'AllTaps' .* FM$"):
        enhance(enhance(find_backbone("FM"), Idle), AllTaps)


def test_one_class_per_pair():
    assert enhance(find_backbone("FM"), Idle) is enhance(find_backbone("FM"), Idle)
    assert enhance(find_backbone("FM"), Idle).__name__ == "FM_Idle"


def test_a_frozen_model_has_the_same_anatomy_and_stays_frozen():
    model = build("FinalMLP", "FinalMLP")
    expected = find_anatomy(model)
    model.requires_grad_(False)
    assert find_anatomy(model) == expected and expected.towers
    assert not any(parameter.requires_grad for parameter in model.parameters())
