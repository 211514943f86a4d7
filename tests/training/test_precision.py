"""Half precision in the forward pass: losses stay close to float32's, and what a method adds is computed in float32."""

import pickle

import pytest
import torch
from fuxictr.pytorch.torch_utils import seed_everything
from torch.nn import functional

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.distillation import JointTeacher
from fuxictr_llm.host.batches import rows_of
from fuxictr_llm.model_zoo.ELEC.gain import gain_class
from fuxictr_llm.registry import own_backbone_names
from fuxictr_llm.training.checkpoints import _packed, _unpacked
from fuxictr_llm.training.precision import Precision, check_precision
from fuxictr_llm.training.step import TrainingStep
from matrix_cells import PATHS, cell, problem_of, with_vectors
from support import batches, build

OF_METHODS = ("LLaCTR", "LLMEmb", "ELEC")
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def cells(names, methods):
    return [(name, method) for name in names for method in methods]


def built(backbone, method, **changes):
    """The model of a cell in training mode, and a batch; without dropout, which may draw otherwise in half
    precision, and BatchNorm, which blows up what is rounded off.
    """
    if problem := problem_of(backbone, method):
        assert "shows none" in problem
        pytest.skip(problem)
    found = cell(backbone, method)
    without = {key: 0 for key in ("batch_norm", "net_dropout") if key in found.case.settings}
    model = found.build(**without, **changes).train()
    return model, found.case.batches(rows=32, batch_size=32)[0]


def loss_and_gradients(model, batch, precision):
    model.zero_grad()
    seed_everything(3)
    loss = TrainingStep(model, {"precision": precision}).module(batch, rows_of(batch))
    loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("backbone", "method"), [*cells([*own_backbone_names(), "SIM"], ["AllTaps"]), *cells(PATHS, OF_METHODS)]
)
def test_a_step_in_bfloat16_is_close_to_one_in_float32(backbone, method):
    model, batch = built(backbone, method)
    loss, gradients = loss_and_gradients(model, batch, "fp32")
    half_loss, half_gradients = loss_and_gradients(model, batch, "bf16")
    assert half_loss.dtype == torch.float32 and torch.isclose(half_loss, loss, rtol=0.02)
    assert half_loss != loss or backbone == "LR"  # something was computed in half precision
    assert half_gradients.keys() == gradients.keys()
    error, size = (
        sum(each.square().sum() for each in parts) ** 0.5
        for parts in ([half_gradients[name] - gradients[name] for name in gradients], gradients.values())
    )
    assert error <= 0.25 * size  # a wrong sign or scale is more than that
    assert pickle.loads(pickle.dumps(model.output_activation))._forward_pre_hooks == {}


@pytest.mark.parametrize("backbone", PATHS)
def test_the_terms_of_llactr_are_those_of_float32(backbone):
    model, batch = built(backbone, "LLaCTR")
    shown = Precision("bf16").forward(model, batch)
    trace, method = shown["trace"], model.enhancement
    embeddings, fre, fie = trace.embeddings, method.fre, method.fie
    assert {tensor.dtype for tensor in (embeddings, trace.logit, trace.final_logit)} == {torch.float32}
    log_p = (fre.field_vectors @ fre.projection.weight.T + fre.projection.bias).log_softmax(dim=-1)
    distance = functional.kl_div(embeddings.log_softmax(dim=-1), log_p.expand_as(embeddings), None, None, "sum", True)
    expected = method.config.lambda_fre * distance / len(embeddings)
    torch.testing.assert_close(method.loss(trace, None), expected, rtol=1e-5, atol=1e-6)
    weights = fie.cosines + 10 * torch.tanh((fie.map @ fie.cosines + fie.bias - fie.cosines) / 10)
    left, right = torch.triu_indices(embeddings.shape[1], embeddings.shape[1], 1)
    products = (embeddings[:, left] * embeddings[:, right]).sum(dim=-1)
    if fie.form == "scalar":
        products = torch.ones_like(products)
    added = method.config.lambda_fie * products @ torch.atleast_2d(weights).T
    torch.testing.assert_close(trace.final_logit, trace.logit + added, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("schedule", ["staged", "joint"])
@pytest.mark.parametrize("backbone", PATHS)
def test_the_terms_of_elec_are_those_of_float32(backbone, schedule):
    model, batch = built(backbone, "ELEC", schedule=schedule, warmup_epochs=0)
    method, teacher = model.enhancement, model.enhancement.teacher
    if schedule == "joint":
        gain = cell(backbone, "ELEC").case.build(
            gain_class(type(teacher.model).backbone_cls, "top"), vector_width=3, inject="top"
        )
        method.teacher = JointTeacher(TrainingStep(gain, {}), add=with_vectors)
    trace, config = Precision("bf16").forward(model, batch)["trace"], method.config
    term = method.loss(trace, None)  # a joint teacher learns first
    z_g, r_g = method.teacher(batch)
    p_v, p_g, r_v = trace.final_logit.sigmoid(), z_g.sigmoid(), trace.final_representation
    expected = -config.alpha * (p_g * p_v.log() + (1 - p_g) * (1 - p_v).log()).mean(dim=0).sum()
    if method.compares_representations:
        assert r_v.dtype == r_g.dtype == torch.float32
        difference = r_v @ method.hint.weight.T + method.hint.bias - r_g
        expected = expected + config.beta * (difference**2).mean()
    torch.testing.assert_close(term, expected, rtol=1e-5, atol=1e-6)


def test_probabilities_are_not_rounded_to_one():
    model, (batch, *_) = build("DeepFM").train(), batches()
    with torch.no_grad():
        model.mlp.mlp[-1].bias += 8
    probabilities = Precision("bf16").forward(model, batch)["y_pred"]
    assert probabilities.dtype == torch.float32 and (probabilities > 0.998).all() and (probabilities < 1).all()


def test_a_forward_pass_that_fails_leaves_no_hooks():
    model = build("DeepFM")
    with pytest.raises(AttributeError):
        Precision("bf16").forward(model, None)
    assert not model.output_activation._forward_pre_hooks and not torch.is_autocast_enabled("cpu")


def test_fp16_scales_the_loss_and_leaves_out_steps_that_overflow():
    steps, exact = batches("FM"), build("FM", "FM").train()
    model = build("FM", "FM").train()
    step, exact_step = TrainingStep(model, {}), TrainingStep(exact, {})
    # Of a GPU's precision all but the half precision itself: CPUs scale as well.
    step.precision = Precision("fp32", torch.amp.GradScaler("cpu", init_scale=2.0**10))
    for index, batch in enumerate(steps):
        assert step(batch, index) == exact_step(batch, index)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, exact.state_dict()[name], rtol=1e-5, atol=1e-6)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    step.precision.scaler.update(torch.finfo(torch.float32).max)
    assert step(steps[0], 0).isfinite()
    assert all(map(torch.equal, before, model.parameters()))
    assert step.precision.scaler.get_scale() < torch.finfo(torch.float32).max


def test_a_joint_teacher_trains_in_the_precision_of_its_step_and_answers_in_float32():
    states, steps = {}, batches("DNN", count=2)
    for precision in ("fp32", "bf16"):
        model = build("DNN", "DNN", net_dropout=0, batch_norm=False)
        teacher = JointTeacher(TrainingStep(model, {"precision": precision}))
        alone = build("DNN", "DNN", net_dropout=0, batch_norm=False)
        step = TrainingStep(alone.train(), {"precision": precision})
        for index, batch in enumerate(steps):
            teacher.learn(batch)
            step(batch, index)
        states[precision] = model.state_dict()
        assert all(torch.equal(value, alone.state_dict()[name]) for name, value in states[precision].items())
        assert {value.dtype for value in states[precision].values()} == {torch.float32}
        probability = alone.eval().forward(steps[0])["y_pred"]
        assert torch.equal(teacher(steps[0]).logit.sigmoid(), probability)
    assert any(not torch.equal(value, states["bf16"][name]) for name, value in states["fp32"].items())


def test_a_joint_teacher_with_a_scaled_loss_goes_on_from_what_was_saved():
    def scaled(init_scale):
        step = TrainingStep(build("FM", "FM", seed=4), {})
        step.precision.scaler = torch.amp.GradScaler("cpu", init_scale=init_scale, growth_interval=2)
        return JointTeacher(step, seed=3)

    whole, resumed, steps, tensors = scaled(8.0), scaled(2.0), batches("FM"), {}
    for batch in steps:
        whole.learn(batch)
    saved = _packed(whole.training_state(), tensors)
    resumed.load_training_state(_unpacked(saved, tensors))
    for teacher in (whole, resumed):
        teacher.learn(steps[0])
    scalers = [teacher.step.precision.scaler.state_dict() for teacher in (whole, resumed)]
    assert scalers[0] == scalers[1] and scalers[0]["scale"] == 32.0  # doubled after every second step
    expected = resumed.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in whole.model.state_dict().items())


@pytest.mark.parametrize(
    ("precision", "device", "message"),
    [("fp16", CPU, "needs a GPU"), ("tf32", CPU, "needs a GPU"), ("bf16", GPU, "Ampere"), ("tf32", GPU, "Ampere")],
)
def test_a_device_without_the_precision_is_refused_in_one_line(monkeypatch, precision, device, message):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    with pytest.raises(UserError, match=f"precision '{precision}' .*{message}") as error:
        check_precision({"precision": precision}, device)
    assert "\n" not in str(error.value)
    assert (
        check_precision({"precision": "fp16"}, GPU) == "fp16" and check_precision({"precision": "bf16"}, CPU) == "bf16"
    )
