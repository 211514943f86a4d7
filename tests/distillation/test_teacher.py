"""A teacher shows what its model gives in evaluation mode, and the model is left as it was."""

import copy

import pytest
import torch

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.distillation import ShuffledTeacher, Teacher
from fuxictr_llm.enhancement.model import enhance
from fuxictr_llm.model_zoo.LLaCTR.vector_file import write_field_vectors
from fuxictr_llm.registry import find_backbone, find_method
from support import AllTaps, batches, build, train

BACKBONES = ["DeepFM", "DCNv2", "FinalMLP", "FM"]
LOGIT_LAYERS = {
    "DeepFM": ["mlp.mlp.7"],
    "DCNv2": ["fc"],
    "FinalMLP": ["fusion_module.w_x", "fusion_module.w_y"],
    "FM": [],
}


def trained(name, method=None):
    changes = {}
    if method is find_method("LLaCTR").model_cls:
        fields = ["user", "item", "price", "tags", "image"][: 4 if name in ("DeepFM", "FM") else 5]
        vectors = torch.randn(len(fields), 9, generator=torch.Generator().manual_seed(3))
        write_field_vectors("vectors.safetensors", vectors, fields)
        changes = {"field_vectors": "vectors.safetensors", "lambda_fie": 0.7}
    cls = find_backbone(name)
    model = build(enhance(cls, method) if method else cls, name, **changes)
    train(model, batches(name))
    return model


def literal(model, name, batch):
    """Prediction and representation by hooks of the test's own, in evaluation mode."""
    inputs = {}
    handles = [
        model.get_submodule(layer).register_forward_pre_hook(
            lambda _, args, layer=layer: inputs.update({layer: args[0]})
        )
        for layer in LOGIT_LAYERS[name]
    ]
    model.eval()
    with torch.no_grad():
        y_pred = model.forward(batch)["y_pred"]
    for handle in handles:
        handle.remove()
    if not inputs:  # nothing feeds the logit but the embeddings
        return y_pred, model.embedding_layer(model.get_inputs(batch)).flatten(start_dim=1).detach()
    return y_pred, torch.cat([inputs[layer] for layer in LOGIT_LAYERS[name]], dim=-1)


@pytest.mark.parametrize("method", [None, find_method("LLaCTR").model_cls, AllTaps])
@pytest.mark.parametrize("name", BACKBONES)
def test_a_teacher_shows_the_final_logit_and_representation(name, method):
    model, last = trained(name, method), batches(name)[-1]
    expected, representation = literal(model, name, last)
    if method is AllTaps and LOGIT_LAYERS[name]:
        representation = representation + model.enhancement.shift.detach()
    teacher = Teacher(model)
    model.train()
    shown = teacher(last)
    assert len(last["click"]) == 8 and shown.logit.shape == (8, 1)
    assert torch.equal(shown.logit.sigmoid(), expected)
    assert teacher.width == representation.shape[1] and torch.equal(shown.representation, representation)
    assert not shown.logit.requires_grad


@pytest.mark.parametrize("name", BACKBONES)
def test_asking_leaves_the_model_and_the_random_numbers_as_they_were(name):
    model = trained(name)
    teacher, before = Teacher(model), copy.deepcopy(model.state_dict())
    numbers = torch.get_rng_state()
    hooks = [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()]
    teacher(batches(name)[0])
    assert hooks == [len(module._forward_pre_hooks) + len(module._forward_hooks) for module in model.modules()]
    assert torch.equal(numbers, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_columns_that_the_teacher_does_not_know_are_left_out_and_missing_ones_are_named(teacher_of):
    plain, (batch,) = teacher_of("DeepFM"), batches("DeepFM", 1)
    assert torch.equal(plain({**batch, "more": batch["user"]}).logit, plain(batch).logit)
    with_image, keys = teacher_of("FinalMLP"), set(batch)
    with_image(batch)
    assert set(batch) == keys  # the student's batch is as it was
    with pytest.raises(UserError, match="lacks column 'image', which the teacher FinalMLP reads; .*add="):
        Teacher(with_image.model)(batch)


def test_a_shuffled_teacher_hands_its_answers_round(teacher_of):
    plain, (batch,) = teacher_of("DeepFM"), batches("DeepFM", 1, rows=32)
    one, same = (ShuffledTeacher(plain.model, seed=4) for _ in range(2))
    numbers = torch.get_rng_state()
    own, first, second = plain(batch), one(batch), one(batch)
    assert torch.equal(numbers, torch.get_rng_state())
    assert torch.equal(first.logit, same(batch).logit) and not torch.equal(first.logit, second.logit)
    for shown in (first, second):
        together, expected = torch.cat(shown, dim=-1), torch.cat(own, dim=-1)
        assert sorted(together.tolist()) == sorted(expected.tolist()) and not torch.equal(together, expected)
