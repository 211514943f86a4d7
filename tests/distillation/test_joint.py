"""A teacher that trains on the student's batches: when the student listens, and which weights the teacher ends with."""

import copy

import pytest
import torch

from fuxictr_llm.distillation import JointTeacher
from fuxictr_llm.registry import find_backbone
from fuxictr_llm.training.step import TrainingStep
from support import batches, build, train

WITH_DROPOUT = ["DeepFM", "DCNv2", "FinalMLP", "FM"]


@pytest.fixture
def pair(student_of):
    """A student and its untrained teacher of the same backbone."""

    def make(name="DeepFM", **changes):
        teacher = JointTeacher(TrainingStep(build(name, name, seed=5), {"max_gradient_norm": 0.5}))
        return student_of(name, teacher, schedule="joint", **changes), teacher

    return make


@pytest.mark.parametrize("name", WITH_DROPOUT)
def test_in_the_warm_up_the_teacher_learns_and_the_student_trains_as_if_alone(name, pair):
    (student, teacher), steps = pair(name, warmup_epochs=2), batches(name)
    plain, before = build(name, name), teacher.model.embedding_layer(teacher.model.get_inputs(steps[0]))
    student.enhancement.on_epoch_begin(1)
    assert train(student, steps) == train(plain, steps)
    assert not torch.equal(teacher.model.embedding_layer(teacher.model.get_inputs(steps[0])), before)
    assert all(parameter.grad is None for parameter in teacher.model.parameters()) and not teacher.model.training
    student.enhancement.on_epoch_begin(2)
    assert train(student, steps) != train(plain, steps)


def test_the_teacher_trains_as_fuxictrs_step_does_once_a_batch(pair):
    (student, teacher), steps = pair("FM", warmup_epochs=0), batches()
    alone = copy.deepcopy(teacher.model)
    train(student, steps)
    train(alone, steps)
    assert all(torch.equal(value, teacher.model.state_dict()[key]) for key, value in alone.state_dict().items())


class TwoBatchesAStep(find_backbone("FM")):
    """Sums gradients up as FuxiCTR's models of long sequences do, by the number of the batch that fit keeps."""

    accumulation_steps = 2

    def train_step(self, batch):
        loss = self.compute_loss(self.forward(batch), self.get_labels(batch)) / self.accumulation_steps
        loss.backward()
        if (self._batch_index + 1) % self.accumulation_steps == 0:
            self.optimizer.step()
            self.optimizer.zero_grad()
        return loss


def test_a_teacher_that_sums_gradients_up_over_batches_does_so(student_of):
    first, alone, steps = build(TwoBatchesAStep, "FM"), build(TwoBatchesAStep, "FM"), batches(count=4)
    teacher = JointTeacher(TrainingStep(first, {}))
    train(student_of("FM", teacher, schedule="joint", warmup_epochs=0), steps)
    alone.train()
    for alone._batch_index, batch in enumerate(steps):
        alone.train_step(batch)
    assert all(torch.equal(value, teacher.model.state_dict()[key]) for key, value in alone.state_dict().items())


def test_the_teachers_dropout_differs_from_step_to_step_and_from_the_students(pair):
    (student, teacher), states = pair("DNN"), []
    for model in (teacher.model, student):
        dropout = next(module for module in model.modules() if isinstance(module, torch.nn.Dropout))
        dropout.register_forward_pre_hook(lambda *_: states.append(tuple(torch.get_rng_state().tolist())))
    train(student, batches("DNN", 2))
    assert len(states) == len(set(states)) == 4  # student, teacher, student, teacher


def test_a_fit_leaves_the_teacher_with_the_weights_of_the_students_best_epoch(pair, tmp_path):
    (student, teacher), steps = pair("DeepFM", warmup_epochs=1), batches()
    student.checkpoint, saved = str(tmp_path / "a.model"), {}
    on_save_weights = teacher.on_save_weights

    def save_and_copy():
        saved[student._epoch_index] = copy.deepcopy(teacher.model.state_dict())
        on_save_weights()

    teacher.on_save_weights = save_and_copy
    student.fit(steps, epochs=8, validation_data=steps)
    best = max(saved)
    with torch.no_grad():
        next(teacher.model.parameters()).add_(1.0)
    student.enhancement.on_train_end()
    assert student.enhancement.teacher is None
    assert all(torch.equal(value, saved[best][key]) for key, value in teacher.model.state_dict().items())


@pytest.mark.parametrize("epoch", [0, 1])
def test_weights_kept_in_the_warm_up_are_said_to_be_of_it(pair, epoch, tmp_path, caplog):
    student, _ = pair("FM", warmup_epochs=1)
    student.enhancement.on_epoch_begin(epoch)
    student.save_weights(tmp_path / "a.model")
    student.enhancement.on_epoch_begin(2)
    student.enhancement.on_train_end()
    assert ("the best weights are of the warm-up" in caplog.text) == (epoch == 0)
