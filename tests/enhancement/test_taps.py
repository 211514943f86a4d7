"""What the taps show of a forward pass, and how what a method returns comes in."""

import pytest
import torch

from fuxictr_llm.enhancement.base import Enhancement
from fuxictr_llm.enhancement.model import enhance
from fuxictr_llm.registry import find_backbone
from support import BACKBONES, AllTaps, Idle, batches, build, enhanced, predictions, train

every_backbone = pytest.mark.parametrize("name", BACKBONES)


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
        trace, y_pred = model.traced(batch), model.forward(batch)["y_pred"]
    assert torch.equal(trace.final_logit.sigmoid(), y_pred)
    own, final, shift = trace.representation, trace.final_representation, 0
    if method is AllTaps:
        assert not torch.equal(trace.final_logit, trace.logit)
        shift = model.enhancement.shift
    if trace.anatomy.logit_layers:
        assert torch.equal(final, own + shift)
    else:
        assert torch.equal(final, trace.embeddings.flatten(start_dim=1))
    assert "trace" not in model.forward(batch)


def test_a_forward_pass_that_fails_closes_the_taps():
    model, (batch,) = enhanced("FM"), batches(count=1)
    with pytest.raises(AttributeError):
        model.forward({**batch, "item": None})
    assert model._taps.trace is None


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
    assert len(model.enhancement.anatomy.logit_layers) == 2
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


@every_backbone
def test_the_backbones_own_stacked_embeddings_are_shown(name):
    class Shown(Enhancement):
        def loss(self, trace, y_true):
            expected = torch.stack([trace.by_field[field] for field in self.anatomy.fields], dim=1)
            assert torch.equal(trace.embeddings, expected) and trace.embeddings.data_ptr() == trace.stack.data_ptr()
            return trace.embeddings.sum()

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


def test_embeddings_are_shown_as_the_layer_gave_them_where_a_backbone_puts_others_into_its_dict():
    class Replaces(find_backbone("DNN")):
        def forward(self, inputs):
            embedded = self.embedding_layer.embedding_layer(self.get_inputs(inputs))
            embedded["user"] = 2 * embedded["user"]
            return {"y_pred": self.output_activation(self.mlp(torch.cat([*embedded.values()], dim=-1)))}

    model, (batch,) = build(enhance(Replaces, AllTaps), "DNN"), batches("DNN", 1)
    assert model.enhancement.anatomy.stack is None
    expected = model.embedding_layer.embedding_layer(model.get_inputs(batch))["user"]
    assert torch.equal(model.traced(batch).embeddings[:, 0], expected)
