"""Where the taps sit on models of other forms: several tasks, means, own sigmoids, named modules, mixed widths."""

import pytest
import torch
from fuxictr.pytorch.layers import FeatureEmbedding
from fuxictr.pytorch.models import MultiTaskModel
from torch import nn

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.enhancement.anatomy import find_anatomy
from fuxictr_llm.enhancement.base import Enhancement
from fuxictr_llm.enhancement.model import enhance
from fuxictr_llm.registry import find_backbone
from support import AllTaps, Idle, batches, build, params, predictions, small_feature_map, train

DNN = find_backbone("DNN")


class Doubled(Enhancement):
    """Doubles the representation."""

    def representation(self, representation):
        self.width = representation.shape[1]
        return 2 * representation


class Bias(Enhancement):
    """Adds 0.7 to the logit."""

    def logit(self, embeddings, logit):
        return torch.full_like(logit, 0.7)


class Mean(DNN):
    """Half of the sum of two logits, the second negative."""

    def forward(self, inputs):
        flat = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
        hidden, head = self.mlp.mlp[:-1](flat), self.mlp.mlp[-1]
        return {"y_pred": self.output_activation((head(hidden) - 3 * head(torch.cos(hidden))) / 2)}


class OwnSigmoid(DNN):
    """Makes its probability itself."""

    def forward(self, inputs):
        return {"y_pred": self.mlp(self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)).sigmoid()}


class Gated(DNN):
    """The last layer's output is multiplied by a gate: no Linear feeds the logit through sums."""

    def forward(self, inputs):
        flat = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
        return {"y_pred": self.output_activation(self.mlp(flat) * flat.mean(dim=1, keepdim=True))}


def model_of(cls, method, **changes):
    return build(enhance(cls, method), "DNN", **changes)


def test_a_mean_of_towers_has_its_constants():
    anatomy = model_of(Mean, Idle).enhancement.anatomy
    assert [(layer.call, layer.scale) for layer in anatomy.logit_layers] == [(0, 0.5), (1, -1.5)]
    model, (batch,) = model_of(Mean, Doubled), batches("DNN", 1)
    plain = build(Mean, "DNN")
    with torch.no_grad():
        plain.mlp.mlp[-1].weight.mul_(2)
    assert torch.allclose(predictions(model, [batch]), predictions(plain, [batch]), atol=1e-6)


def test_a_gate_makes_no_tower_and_the_embeddings_are_the_representation():
    anatomy = model_of(Gated, Idle).enhancement.anatomy
    assert anatomy.logit_layers == anatomy.widths == () and anatomy.representation_width == sum(anatomy.dims)
    assert anatomy.missing == {
        "representation": "no Linear of width 1 feeds the logit; the field embeddings side by side are taken"
    }
    model, (batch,) = model_of(Gated, Doubled), batches("DNN", 1)
    trace = model.traced(batch)
    assert torch.equal(trace.final_representation, trace.embeddings.flatten(start_dim=1)) and trace.replacement is None


@pytest.mark.parametrize("name, width", [("mlp.mlp.6", 6), ("mlp.mlp.7", 6), ("embedding_layer", 20)])
def test_a_named_module_gives_the_representation_and_takes_its_replacement(name, width):
    model, plain = model_of(Gated, Doubled, tap_representation=name), build(Gated, "DNN")
    anatomy = model.enhancement.anatomy
    assert (anatomy.named, anatomy.widths, anatomy.representation_width) == (name, (width,), width)
    module, (batch,) = plain.get_submodule(name), batches("DNN", 1)
    if name == "mlp.mlp.7":  # the logit layer: its input
        module.register_forward_pre_hook(lambda _, args: (2 * args[0],))
    else:
        module.register_forward_hook(lambda *args: 2 * args[2])
    assert torch.equal(predictions(model, [batch]), predictions(plain, [batch]))
    assert model.enhancement.width == width
    idle = model_of(Gated, Idle, tap_representation=name)
    assert torch.equal(predictions(idle, [batch]), predictions(build(Gated, "DNN"), [batch]))


def test_one_of_several_towers_can_be_named():
    model = build(enhance(find_backbone("FinalMLP"), AllTaps), "FinalMLP", tap_representation="fusion_module.w_y")
    assert [layer.module for layer in model.enhancement.anatomy.logit_layers] == ["fusion_module.w_y"]
    train(model, batches("FinalMLP", 1))
    assert model.enhancement.shapes["representation"] == (8, 8)


def test_a_probability_of_the_models_own_is_turned_back_into_its_logit():
    plain, (batch,) = build(OwnSigmoid, "DNN"), batches("DNN", 1)
    difference = torch.logit(predictions(model_of(OwnSigmoid, Bias), [batch])) - torch.logit(
        predictions(plain, [batch])
    )
    assert torch.allclose(difference, torch.tensor(0.7), atol=1e-4)
    idle, other = model_of(OwnSigmoid, Idle), build(OwnSigmoid, "DNN")
    assert "is not what self.output_activation returned" in idle.enhancement.anatomy.missing["representation"]
    assert train(idle, [batch]) == train(other, [batch])
    train(model_of(OwnSigmoid, AllTaps), [batch])


def test_fields_of_other_widths_are_projected_and_learn():
    def mixed(cls):
        feature_map = small_feature_map("DNN")
        feature_map.features["item"]["embedding_dim"] = 7
        feature_map.features["tags"]["embedding_dim"] = 2
        torch.manual_seed(0)
        return cls(feature_map, **params("DNN"))

    model, steps = mixed(enhance(DNN, AllTaps)), batches("DNN")
    anatomy, projections = model.enhancement.anatomy, model.enhancement.field_projections
    assert anatomy.dims == (4, 7, 4, 2, 4) and anatomy.embedding_dim == 4
    trace = model.traced(steps[0])
    assert torch.allclose(trace.embeddings[:, 1], trace.by_field["item"] @ projections.layers[1].weight.T)
    assert torch.equal(trace.embeddings[:, 0], trace.by_field["user"])
    before = [parameter.clone() for parameter in projections.parameters()]
    train(model, steps)
    after = [*projections.parameters()]
    assert len(before) == 2 and all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    plain, idle = mixed(DNN), mixed(enhance(DNN, Idle))
    assert train(plain, steps) == train(idle, steps)


class TwoTasks(MultiTaskModel):
    """A head a task on one hidden layer; the second activation is called first."""

    def __init__(self, feature_map, embedding_dim=4, learning_rate=1e-3, **kwargs):
        kwargs |= {"num_tasks": 2, "task": ["binary_classification"] * 2}
        super().__init__(feature_map, **kwargs)
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.hidden = nn.Linear(feature_map.sum_emb_out_dim(), 6)
        self.heads = nn.ModuleList(nn.Linear(6, 1) for _ in range(2))
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        hidden = self.hidden(self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)).relu()
        second = self.output_activation[1](self.heads[1](hidden))
        return {"click_pred": self.output_activation[0](self.heads[0](hidden)), "like_pred": second}


def two_tasks(cls):
    feature_map = small_feature_map("DNN")
    feature_map.labels = ["click", "like"]
    torch.manual_seed(1)
    return cls(feature_map, **params("DNN"))


def with_likes(steps):
    return [{**batch, "like": 1 - batch["click"]} for batch in steps]


class PerTask(Enhancement):
    """Adds 1 to the first task's logit and 2 to the second's, and doubles the representation."""

    def representation(self, representation):
        return 2 * representation

    def logit(self, embeddings, logit):
        return torch.tensor([1.0, 2.0])

    def loss(self, trace, y_true):
        self.y_true, self.final = y_true, trace.final_logit
        return trace.final_logit.sum()


def test_every_task_has_its_logit_its_towers_and_its_term():
    model, plain, (batch,) = two_tasks(enhance(TwoTasks, PerTask)), two_tasks(TwoTasks), with_likes(batches("DNN", 1))
    anatomy = model.enhancement.anatomy
    assert anatomy.tasks == ("click", "like") and anatomy.outputs == ("click_pred", "like_pred")
    assert anatomy.activations == ("output_activation.0", "output_activation.1")
    assert [(layer.module, layer.task) for layer in anatomy.logit_layers] == [("heads.0", 0), ("heads.1", 1)]
    with torch.no_grad():
        for head in plain.heads:
            head.weight.mul_(2)
        expected, shown = plain.forward(batch), model.forward(batch)
    for task, key in enumerate(anatomy.outputs):
        assert torch.allclose(shown[key].logit() - expected[key].logit(), torch.tensor(task + 1.0), atol=1e-4)
    train(model, [batch])
    assert torch.equal(model.enhancement.y_true, torch.stack([batch["click"], batch["like"]], dim=1).float())
    assert model.enhancement.final.shape == (8, 2)


def test_an_idle_method_leaves_a_multi_task_model_as_it_is():
    plain, idle, steps = two_tasks(TwoTasks), two_tasks(enhance(TwoTasks, Idle)), with_likes(batches("DNN"))
    assert train(plain, steps) == train(idle, steps)
    assert all(torch.equal(value, idle.state_dict()[key]) for key, value in plain.state_dict().items())
    all_taps = two_tasks(enhance(TwoTasks, AllTaps))
    train(all_taps, steps)
    assert all_taps.enhancement.shapes["logit"] == (all_taps.enhancement.shapes["loss"][0], 2)


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"tap_representation": "mpl"}, "unknown module 'mpl' in tap_representation of Gated_Idle; did you mean 'mlp'"),
        ({"tap_embedding": "embeding_layer"}, "tap_embedding of Gated_Idle; did you mean 'embedding_layer'"),
        ({"tap_embedding": "mlp"}, "tap_embedding 'mlp' gives no vectors of fields.*: embedding_layer.embedding_layer"),
        ({"tap_representation": ["mlp.mlp.6", "mlp.mlp.3"]}, "names 'mlp.mlp.3' beside others, .*; name it alone"),
        ({"tap_representation": "enhancement"}, "unknown module 'enhancement'"),
    ],
)
def test_keys_that_name_no_fitting_module_are_errors(keys, message):
    with pytest.raises(UserError, match=message):
        model_of(Gated, Idle, **keys)


def test_a_tap_embedding_may_be_any_module_that_gives_the_fields():
    class Tables(DNN):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.own = Own(self.embedding_layer)

        def forward(self, inputs):
            own = self.own(self.get_inputs(inputs))
            return {"y_pred": self.output_activation(self.mlp(own.flatten(start_dim=1)))}

    class Own(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, columns):
            return 3 * self.layer(columns)

    model, (batch,) = model_of(Tables, AllTaps, tap_embedding="own"), batches("DNN", 1)
    assert model.enhancement.anatomy.embedding == "own" and len(model.enhancement.anatomy.fields) == 5
    expected = 3 * model.embedding_layer(model.get_inputs(batch))
    assert torch.equal(model.traced(batch).embeddings, expected)
    assert find_anatomy(build("DNN", "DNN"), tap_embedding="embedding_layer").stack == "embedding_layer"


class Scores(DNN):
    """Returns a number that is no probability."""

    def forward(self, inputs):
        return {"y_pred": 100 + self.mlp(self.embedding_layer(self.get_inputs(inputs), flatten_emb=True))}


class Nothing(DNN):
    """Returns no dict."""

    def forward(self, inputs):
        return self.mlp(self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)).sigmoid()


class Fails(DNN):
    """Cannot take the columns."""

    def forward(self, inputs):
        return {"y_pred": self.mlp(inputs["price"]).sigmoid()}


@pytest.mark.parametrize(
    "cls, message",
    [
        (Scores, "its prediction is no probability; make it with"),
        (Nothing, "returns no dict with 'y_pred'"),
        (Fails, "cannot be tapped: .* columns like those of data set 'small' .RuntimeError: "),
    ],
)
def test_a_model_without_a_probability_says_so(cls, message):
    with pytest.raises(UserError, match=message):
        model_of(cls, Idle)
