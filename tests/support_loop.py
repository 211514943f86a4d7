"""Trainings on tiny data, for the tests of the loop."""

import torch
from fuxictr.pytorch.torch_utils import seed_everything

from matrix_cells import case_of, cell

# One backbone for each path that training can take: attention with histories, several tasks, tuples as batches and
# gradients that are added up over batches.
CELLS_TO_RESUME = [
    ("DeepFM", "LLaCTR"),
    ("DIN", None),
    ("MMoE", "ELEC"),
    ("SIM", None),
]


class Rows:
    """Batches that can be started anywhere, in another order each epoch."""

    starts_anywhere = True

    def __init__(self, batches):
        self.batches, self.epoch, self.first = batches, 0, 0

    def start_at(self, epoch, batch):
        self.epoch, self.first = epoch, batch

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        order = [(index + self.epoch) % len(self) for index in range(len(self))]
        first, self.first = self.first, 0
        self.epoch += 1
        for index in order[first:]:
            yield self.batches[index]


def make(name, method, folder, **changes):
    """A model with fresh weights, its rows, and the settings of its training."""
    params = {"epochs": 4, "max_gradient_norm": 0.5, "optimizer_impl": "fuxictr", **changes}
    if method is None:
        found = case_of(cell(name, "AllTaps").case.cls)
        model, steps = found.build(**params), found.batches(rows=80, batch_size=32)
    else:
        found = cell(name, method)
        model, steps = found.build(**params), found.batches()
    folder.mkdir(exist_ok=True)
    model.checkpoint = str(folder / "best.model")
    seed_everything(7)
    return model, Rows(steps), {**found.case.settings, **params} if method else {**found.settings, **params}


def assert_equal_training(one, other):
    assert one._epoch_index == other._epoch_index
    assert one._best_metric == other._best_metric
    assert one.optimizer.param_groups[0]["lr"] == other.optimizer.param_groups[0]["lr"]
    expected = other.state_dict()
    for key, value in one.state_dict().items():
        assert torch.equal(value, expected[key]), key
