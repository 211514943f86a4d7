"""The student: what its loss is, that only it learns, and that nothing of the teacher stays in it."""

import copy
import pickle

import pytest
import torch

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.distillation import DistillationConfig, Distilled, distilled, representation_loss, score_loss
from fuxictr_llm.enhancement.model import enhance
from fuxictr_llm.registry import find_backbone
from support import BACKBONES, Idle, batches, build, predictions, train

# teacher, student
PAIRS = [
    ("DeepFM", "DeepFM"),
    ("DCNv2", "DCNv2"),
    ("FinalMLP", "FinalMLP"),
    ("FM", "FM"),
    ("FinalMLP", "DeepFM"),
    ("FM", "DCNv2"),
    ("DCNv2", "FM"),
    ("LR", "DCNv2"),
    ("DCNv2", "LR"),
]
every_pair = pytest.mark.parametrize("teaching, learning", PAIRS)


def settings(teacher):
    return {"representation_loss": "hint", "teacher_width": teacher.width or None}


@pytest.mark.parametrize("name", BACKBONES)
def test_with_both_weights_zero_training_is_the_plain_backbones_and_nobody_is_asked(name, student_of):
    plain = build(name, name)
    student = student_of(name, alpha=0.0, beta=0.0, representation_loss="hint", schedule="joint")
    student.enhancement.teacher = "is never asked"
    steps = batches(name)
    assert train(plain, steps) == train(student, steps)
    assert student.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, student.state_dict()[key]) for key, value in plain.state_dict().items())


@every_pair
def test_the_loss_is_the_plain_one_plus_both_terms(teaching, learning, teacher_of, student_of):
    teacher = teacher_of(teaching)
    changes = {"alpha": 0.7, "beta": 0.3, "score_loss": "kl", "tau": 2.0, **settings(teacher)}
    student, (batch,) = student_of(learning, teacher, **changes), batches(learning, 1)
    plain, untaught = student_of(learning, alpha=0.0, beta=0.0), student_of(learning)
    shown, hint = teacher(batch), copy.deepcopy(student.enhancement.hint)
    torch.manual_seed(2)
    trace = untaught.train().traced(batch)
    expected = 0.7 * score_loss("kl", trace.final_logit, shown.logit, tau=2.0)
    if "LR" not in (teaching, learning):
        expected += 0.3 * representation_loss("hint", trace.representation, shown.representation, hint)
    difference = train(student, [batch])[0] - train(plain, [batch])[0]
    assert difference == pytest.approx(expected.item(), rel=1e-4)


@every_pair
def test_only_the_student_learns(teaching, learning, teacher_of, student_of):
    teacher = teacher_of(teaching)
    teacher.model.optimizer.zero_grad()
    student, plain, steps = (
        student_of(learning, teacher, **settings(teacher)),
        build(learning, learning),
        batches(learning),
    )
    before = copy.deepcopy(teacher.model.state_dict())
    train(student, steps)
    numbers = torch.get_rng_state()
    train(plain, steps)
    assert torch.equal(numbers, torch.get_rng_state())
    assert all(torch.equal(value, before[key]) for key, value in teacher.model.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    assert not torch.equal(predictions(student, steps), predictions(plain, steps))
    if student.enhancement.compares_representations:
        weight = student.enhancement.hint.weight
        assert any(weight is parameter for group in student.optimizer.param_groups for parameter in group["params"])
        assert weight.grad.abs().sum() > 0
    elif student.enhancement.hint is not None:  # the teacher has no representation
        assert student.enhancement.hint.weight.grad is None


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_student_holds_nothing_of_its_teacher_and_a_copy_asks_for_one(duplicate, teacher_of, student_of):
    teacher, steps = teacher_of("FinalMLP"), batches("DeepFM")
    student, alone = student_of("DeepFM", teacher, **settings(teacher)), student_of("DeepFM", **settings(teacher))
    assert len(pickle.dumps(student)) == len(pickle.dumps(alone))
    assert student.state_dict().keys() == alone.state_dict().keys()
    train(student, steps)
    twin = duplicate(student)
    assert student.enhancement.teacher is teacher and twin.enhancement.teacher is twin.enhancement._batch is None
    with pytest.raises(UserError, match=r"this DeepFM is a student without a teacher .* call enhancement.learn_from"):
        train(twin, steps)
    twin.enhancement.learn_from(teacher)
    before = copy.deepcopy(student.state_dict())
    train(twin, steps)
    assert all(torch.equal(value, before[key]) for key, value in student.state_dict().items())


@pytest.mark.parametrize("name", ["DeepFM", "DCNv2", "FinalMLP", "FM"])
def test_serving_is_the_backbone_alone(name, teacher_of, student_of):
    teacher = teacher_of(name)
    student, plain, steps = student_of(name, teacher, **settings(teacher)), build(name, name, seed=9), batches(name)
    train(student, steps)
    student.enhancement.on_train_end()
    plain.load_state_dict(student.backbone_state_dict(), strict=True)
    assert Distilled.fold(student.enhancement.config, student.enhancement.anatomy, {}) is None
    for model in (plain, student):
        model.eval()
    for batch in steps:
        del batch["click"], batch["group"]
        assert torch.equal(student.forward(batch)["y_pred"], plain.forward(batch)["y_pred"])
    assert student.enhancement._batch is None


def test_weights_with_a_hint_load_into_a_new_student(teacher_of, student_of, tmp_path):
    teacher = teacher_of("FinalMLP")
    student, other = (student_of("DeepFM", teacher, **settings(teacher)) for _ in range(2))
    train(student, batches())
    student.save_weights(tmp_path / "a.model")
    other.load_weights(tmp_path / "a.model")
    assert torch.equal(student.enhancement.hint.weight, other.enhancement.hint.weight)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({}, "of the student DeepFM is 6 wide, that of the teacher FinalMLP 14; set representation_loss: hint and teacher_width: 14, or beta: 0"),
        ({"representation_loss": "cosine"}, "set representation_loss: hint and teacher_width: 14, or beta: 0"),
        ({"representation_loss": "hint"}, "6 wide, its hint made for 6, that of the teacher FinalMLP 14; set teacher_width: 14, or beta: 0"),
    ],
)  # fmt: skip
def test_widths_that_differ_are_named(changes, message, teacher_of, student_of):
    student = student_of("DeepFM", **changes)
    with pytest.raises(UserError, match=message):
        student.enhancement.learn_from(teacher_of("FinalMLP"))
    assert student.enhancement.teacher is None
    student_of("DeepFM", teacher_of("FinalMLP"), **{**changes, "beta": 0.0})


@pytest.mark.parametrize("teaching, learning", [("LR", "DeepFM"), ("DeepFM", "LR")])
def test_a_model_without_a_representation_is_named_once(teaching, learning, teacher_of, student_of, caplog):
    student = student_of(learning, teacher_of(teaching), alpha=0.0)
    train(student, batches(learning))
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["beta 1.0 has no effect: LR has no representation"]
    assert student.enhancement.active_taps() == frozenset()


@pytest.mark.parametrize("teaching, learning", [("FM", "DeepFM"), ("DeepFM", "FM")])
def test_embeddings_are_compared_with_a_representation_only_through_a_hint(
    teaching, learning, teacher_of, student_of, caplog
):
    student = student_of(learning, teacher_of(teaching))
    assert not student.enhancement.compares_representations
    assert "beta 1.0 has no effect: FM has no representation in front of its logit" in caplog.text
    teacher = teacher_of(teaching)
    assert student_of(learning, teacher, **settings(teacher)).enhancement.compares_representations
    assert student_of("FM", teacher_of("FM")).enhancement.compares_representations


def test_a_student_compiles_and_is_no_teacher_of_itself(teacher_of, student_of):
    student, (batch,) = student_of("DCNv2", teacher_of("DCNv2")), batches("DCNv2", 1)
    torch.compiler.reset()
    student.train()
    return_dict = torch.compile(student.forward, backend="eager", fullgraph=True)(batch)
    student.compute_loss(return_dict, student.get_labels(batch)).backward()
    with pytest.raises(UserError, match="cannot be its own teacher"):
        student.enhancement.learn_from(type(student.enhancement.teacher)(student))


def test_a_student_may_teach(teacher_of, student_of):
    student, steps = student_of("DeepFM", teacher_of("DeepFM")), batches()
    train(student, steps)
    pupil = student_of("DeepFM", type(student.enhancement.teacher)(copy.deepcopy(student)))
    assert torch.tensor(train(pupil, steps)).isfinite().all()


@pytest.mark.parametrize("key, value", [("alpha", -1), ("tau", 0), ("score_loss", "mse"), ("warmup_epochs", -1)])
def test_wrong_values_are_named(key, value):
    with pytest.raises(UserError, match=f"config key '{key}' is {value!r}"):
        build(distilled(find_backbone("FM")), "FM", **{key: value})


def test_a_student_of_an_enhanced_model_is_refused():
    with pytest.raises(UserError, match="FM_Idle has a method already"):
        distilled(enhance(find_backbone("FM"), Idle))


def test_the_defaults():
    assert DistillationConfig() == DistillationConfig(
        alpha=0.5, beta=0.1, score_loss="bce", tau=1, representation_loss="mse", schedule="staged", warmup_epochs=1
    )
