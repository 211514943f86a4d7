"""The five invariants that `fuxictr_llm/enhancement.py` states, over every backbone."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch.utils.hooks import RemovableHandle

from fuxictr_llm.enhancement import Enhancement, enhance
from fuxictr_llm.errors import UserError
from fuxictr_llm.model_zoo import backbones
from fuxictr_llm.registry import find_backbone
from support import BACKBONES, WITH_LINEAR_LAYER, AllTaps, Idle, batches, build, train

TOWERS = {"DCNv2": 1, "DNN": 1, "DeepFM": 1, "FM": 0, "FinalMLP": 2, "FmFM": 0, "FwFM": 2, "WuKong": 1}

every_backbone = pytest.mark.parametrize("name", BACKBONES)


def enhanced(name, method=AllTaps, **changes):
    return build(enhance(find_backbone(name), method), name, **changes)


def predictions(model, steps):
    model.eval()
    with torch.no_grad():
        return torch.cat([model.forward(batch)["y_pred"] for batch in steps])


def test_the_list_of_backbones_here_is_the_zoo():
    assert sorted(path.stem for path in Path(backbones.__path__[0]).glob("[!_]*.py")) == sorted(BACKBONES)


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
def test_taps_see_the_declared_shapes(name):
    model, steps = enhanced(name), batches(name, 1)
    train(model, steps)
    rows, shapes, anatomy = len(steps[0]["click"]), model.enhancement.shapes, model.enhancement.anatomy
    assert anatomy.fields == ("user", "item", "price", "tags", "image")[: len(anatomy.fields)]
    assert len(anatomy.fields) == (4 if name in WITH_LINEAR_LAYER else 5)
    assert len(anatomy.towers) == TOWERS[name]
    assert shapes["embeddings"] == (rows, len(anatomy.fields), 4)
    assert shapes["inputs"] == (rows,)
    assert shapes["logit"] == shapes["loss"] == (rows, 1)
    if anatomy.towers:
        assert shapes["representation"] == (rows, sum(anatomy.widths))
    else:
        assert "representation" not in shapes


@every_backbone
def test_the_loss_tap_is_silent_at_inference(name):
    model, steps = enhanced(name), batches(name, 1)
    predictions(model, steps)
    assert "loss" not in model.enhancement.shapes
    assert "seen" not in model.forward(steps[0])


@pytest.mark.parametrize("taps, shown", [(("loss",), 0), ((), 0), (("loss", "logit"), 1)])
def test_at_inference_a_batch_is_shown_only_where_another_tap_acts(taps, shown):
    class Counts(Enhancement):
        batches = 0

        def active_taps(self):
            return frozenset({"inputs", *taps})

        def inputs(self, inputs):
            self.batches += 1

    model, (batch,) = enhanced("FM", Counts), batches(count=1)
    predictions(model, [batch])
    assert model.enhancement.batches == shown
    train(model, [batch])
    assert model.enhancement.batches == shown + 1


@every_backbone
@pytest.mark.parametrize("method", [AllTaps, Idle])
def test_a_watched_pass_shows_what_the_model_ended_up_with(name, method):
    model, (batch,) = enhanced(name, method), batches(name, 1)
    train(model, [batch])
    model.eval()
    with torch.no_grad():
        seen, y_pred = model.watched(batch), model.forward(batch)["y_pred"]
    assert torch.equal(seen.final_logit.sigmoid(), y_pred)
    own, final, shift = seen.anatomy.towers and seen.representation, seen.final_representation, 0
    if method is AllTaps:
        assert not torch.equal(seen.final_logit, seen.logit)
        shift = model.enhancement.shift
    assert torch.equal(final, own + shift) if seen.anatomy.towers else final is None
    assert "seen" not in model.forward(batch)


def test_a_forward_pass_that_fails_closes_the_taps():
    model, (batch,) = enhanced("FM"), batches(count=1)
    with pytest.raises(AttributeError):
        model.forward({**batch, "user": None})
    assert model._taps.seen is None


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


def test_a_replaced_representation_acts_as_if_the_logit_layer_had_got_it():
    class Doubled(Enhancement):
        def representation(self, representation):
            return 2 * representation

    model, steps = enhanced("DNN", Doubled), batches("DNN", 1)
    plain = build("DNN", "DNN")
    with torch.no_grad():
        plain.mlp.mlp[-1].weight.mul_(2)
    assert torch.allclose(predictions(model, steps), predictions(plain, steps), atol=1e-6)


def test_a_logit_layer_that_is_called_twice_is_two_towers():
    class Twice(find_backbone("DNN")):
        def forward(self, inputs):
            hidden = self.mlp.mlp[:-1](self.embedding_layer(self.get_inputs(inputs), flatten_emb=True))
            head = self.mlp.mlp[-1]
            return {"y_pred": self.output_activation(head(hidden) + head(-3 * hidden))}

    class Replaced(Enhancement):
        def representation(self, representation):
            first, second = representation.chunk(2, dim=-1)
            assert torch.allclose(second, -3 * first)
            return torch.cat([0 * first, second], dim=-1)

    model, plain, batch = build(enhance(Twice, Replaced), "DNN"), build("DNN", "DNN"), batches("DNN", 1)
    assert len(model.enhancement.anatomy.towers) == 2
    with torch.no_grad():
        plain.mlp.mlp[-1].weight.mul_(-3)
        plain.mlp.mlp[-1].bias.zero_()
    assert torch.allclose(predictions(model, batch), predictions(plain, batch), atol=1e-6)


def test_the_added_term_is_added_to_the_logit():
    class Bias(Enhancement):
        def logit(self, embeddings, logit):
            return torch.full_like(logit, 0.7)

    model, steps = enhanced("FM", Bias), batches(count=1)
    difference = torch.logit(predictions(model, steps)) - torch.logit(predictions(build("FM", "FM"), steps))
    assert torch.allclose(difference, torch.tensor(0.7), atol=1e-4)


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


def test_a_call_of_the_activation_outside_the_chosen_one_is_left_alone():
    class Bias(Enhancement):
        def logit(self, embeddings, logit):
            return torch.ones_like(logit)

    class TwoCalls(find_backbone("FM")):
        def forward(self, inputs):
            return_dict = super().forward(inputs)
            return {"y1": self.output_activation(torch.zeros(1, 1)), **return_dict}

        def add_loss(self, return_dict, y_true):
            self.in_loss = self.output_activation(torch.zeros(1, 1))
            return super().add_loss(return_dict, y_true)

    model = build(enhance(TwoCalls, Bias), "FM")
    train(model, batches(count=1))
    assert model.in_loss.item() == 0.5
    assert model.forward(batches(count=1)[0])["y1"].item() == 0.5


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


@every_backbone
def test_the_backbones_own_stacked_embeddings_are_shown(name):
    class Shown(Enhancement):
        def loss(self, seen, y_true):
            expected = torch.stack([seen.by_field[field] for field in self.anatomy.fields], dim=1)
            assert torch.equal(seen.embeddings, expected) and seen.embeddings.data_ptr() == seen.stack.data_ptr()
            return seen.embeddings.sum()

    model = enhanced(name, Shown)
    assert model.enhancement.anatomy.stack == "embedding_layer"
    train(model, batches(name, 1))


@pytest.mark.parametrize("when", ["always", "in training"])
def test_embeddings_are_shown_as_they_were_where_a_backbone_changes_its_tensor_in_place(when):
    class InPlace(find_backbone("DNN")):
        def forward(self, inputs):
            flat = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
            if when == "always" or self.training:
                flat.mul_(2)
            return {"y_pred": self.output_activation(self.mlp(flat))}

    class Shown(Enhancement):
        def logit(self, embeddings, logit):
            self.shown = embeddings.detach().clone()

    model = build(enhance(InPlace, Shown), "DNN")
    (batch,) = batches("DNN", 1)
    assert (model.enhancement.anatomy.stack is None) == (when == "always")
    expected = model.embedding_layer(model.get_inputs(batch)).detach()
    train(model, [batch])
    assert torch.equal(model.enhancement.shown, expected)
