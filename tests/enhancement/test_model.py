"""What an enhanced class does besides its invariants, which tests/test_matrix.py checks over every backbone."""

import pickle

import pytest
import torch
from torch.utils.hooks import RemovableHandle

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.enhancement.anatomy import find_anatomy
from fuxictr_llm.enhancement.base import Enhancement
from fuxictr_llm.enhancement.model import enhance
from fuxictr_llm.model_zoo.LLaCTR.vector_file import write_field_vectors
from fuxictr_llm.registry import find_backbone, find_method
from support import AllTaps, Idle, batches, build, enhanced, params, predictions, small_feature_map, train


def test_hooks_of_others_do_not_displace_those_of_an_unpickled_model(monkeypatch):
    model, steps = enhanced("DeepFM"), batches()
    expected, dumped = predictions(model, steps), pickle.dumps(model)
    monkeypatch.setattr(RemovableHandle, "next_id", 0)  # as in a new process
    again = pickle.loads(dumped)
    for _ in range(50):
        again.output_activation.register_forward_pre_hook(lambda *_: None)
        again.embedding_layer.embedding_layer.register_forward_hook(lambda *_: None)
    assert torch.equal(predictions(again, steps), expected)


def test_fuxictrs_fit_calls_the_hooks_of_epochs_and_saved_weights(tmp_path):
    class Listens(Idle):
        def on_epoch_begin(self, epoch):
            calls.append(epoch)

        def on_save_weights(self):
            calls.append("saved")

    calls, steps = [], batches()
    model = enhanced("FM", Listens, learning_rate=1e-12)
    model.checkpoint = str(tmp_path / "a.model")
    model.fit(steps, epochs=3, validation_data=steps)
    assert calls == [0, "saved", 1, 2]


@pytest.mark.parametrize("method", [None, "LLaCTR", "ELEC"])
@pytest.mark.parametrize("name", ["DeepFM", "DCNv2", "FinalMLP"])
def test_forward_compiles_without_graph_breaks(name, method):
    model, batch = model_with(name, method), batches(name, 1)[0]
    compiled = torch.compile(model.forward, backend="eager", fullgraph=True)
    torch.compiler.reset()
    model.eval()
    with torch.no_grad():
        assert torch.equal(compiled(batch)["y_pred"], model.forward(batch)["y_pred"])
    model.train()
    assert ("trace" in compiled(batch)) == (method is not None)


def model_with(name, method):
    if method is None:
        return build(name, name)
    fields = [field for field, spec in small_feature_map(name).features.items() if spec["type"] != "meta"]
    write_field_vectors("vectors.safetensors", torch.randn(len(fields), 9), fields)
    cls = enhance(find_backbone(name), find_method(method).model_cls)
    return build(cls, name, field_vectors="vectors.safetensors")


def test_the_added_loss_counts_in_training_only():
    class Ten(Enhancement):
        def loss(self, trace, y_true):
            return trace.logit.sum() * 0 + 10

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
    assert find_anatomy(model) == expected and expected.logit_layers
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_method_that_is_off_projects_no_fields_of_other_widths():
    def mixed(cls, **changes):
        feature_map = small_feature_map("DNN")
        feature_map.features["item"]["embedding_dim"] = 7
        torch.manual_seed(0)
        return cls(feature_map, **params("DNN", method_regularizer=0.5, **changes))

    dnn, llactr = find_backbone("DNN"), find_method("LLaCTR").model_cls
    off = mixed(enhance(dnn, llactr), lambda_fre=0.0, lambda_fie=0.0, field_vectors="not read")
    assert not [*off.enhancement.parameters()]
    assert train(off, batches("DNN")) == train(mixed(dnn), batches("DNN"))
