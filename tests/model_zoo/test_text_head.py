"""ELEC's text head, which reads each text of a batch once, against the literal formula over rows."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fuxictr_llm.llm.vectors.store import find_or_write
from fuxictr_llm.model_zoo.ELEC import vectors
from fuxictr_llm.model_zoo.ELEC.head import TextHead, with_texts
from fuxictr_llm.training.build import build
from support import params, small_feature_map

UNITS, WIDTH = 2, 5


@pytest.fixture
def head():
    settings = {**params("FM"), "units": UNITS, "h_hidden": 4, "h_dim": 3, "num_threads": 1, "seed": 1}
    head = build(TextHead, with_texts(small_feature_map("FM"), UNITS, WIDTH), settings)
    with torch.no_grad():
        for norm in head.norms:
            norm.weight.normal_()
            norm.bias.normal_()
    return head


@pytest.fixture
def raw():
    """Five rows of four and three texts; a row's key is its number."""
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randn(number, WIDTH, generator=generator) for number in (4, 3)]
    stores = [
        find_or_write("test", {"unit": unit}, len(part), lambda start, stop, part=part: part[start:stop].numpy())
        for unit, part in enumerate(texts)
    ]
    positions = torch.tensor([[3, 0], [1, 1], [3, 1], [0, 2], [2, 0]], dtype=torch.int32)
    index = SimpleNamespace(
        positions=positions,
        row_of=lambda batch: batch["user"],
        train_rows=torch.tensor([True, True, True, True, False]),
        units=[SimpleNamespace(empty=None), SimpleNamespace(empty=2)],
    )
    return vectors.raw_vectors(index, stores)


def test_vectors_are_standardized_over_the_texts_of_train_rows(raw):
    first, second = raw.stores
    told = first.gather(torch.tensor([0, 1, 3]))  # the third text is of the row that is not in train
    assert torch.allclose(told.mean(dim=0), torch.zeros(WIDTH), atol=1e-6)
    assert torch.allclose(told.std(dim=0, correction=0), torch.ones(WIDTH), atol=1e-5)
    assert not second.gather(torch.tensor([2])).any()  # the empty text, which is left out of mean and deviation
    assert torch.allclose(second.gather(torch.tensor([0, 1])).abs(), torch.ones(2, WIDTH), atol=1e-4)


def literal_h(head, s):
    normed = torch.cat([norm(s[:, i * WIDTH : (i + 1) * WIDTH]) for i, norm in enumerate(head.norms)], dim=1)
    return head.transformation(normed)


def test_a_batch_has_each_text_of_its_rows_once(raw):
    rows = torch.tensor([2, 0, 2, 4, 0])
    batch = raw({"user": rows, "click": torch.zeros(5)})
    assert batch.keys() == {"user", "click", "llm_vectors_0", "llm_text_0", "llm_vectors_1", "llm_text_1"}
    assert [len(batch["llm_vectors_0"]), len(batch["llm_vectors_1"])] == [2, 2]
    picked = [batch[f"llm_vectors_{unit}"][batch[f"llm_text_{unit}"]] for unit in range(UNITS)]
    assert torch.equal(torch.cat(picked, dim=1), raw.of_rows(rows))


def test_outputs_and_gradients_are_those_of_the_literal_formula(head, raw):
    rows, clicks = torch.tensor([2, 0, 2, 4, 0, 1]), torch.tensor([1.0, 0, 0, 1, 1, 0]).unsqueeze(1)
    s, names = raw.of_rows(rows), [name for name, _ in head.named_parameters()]
    assert torch.allclose(head.h(s), literal_h(head, s), atol=1e-6)
    columns = {name: column for name, column in raw({"user": rows}).items() if name != "user"}
    predictions = head.forward(columns)["y_pred"], torch.sigmoid(head.prediction(literal_h(head, s)))
    assert torch.allclose(*predictions, atol=1e-6)
    gradients = [
        dict(
            zip(
                names,
                torch.autograd.grad(nn.functional.binary_cross_entropy(y, clicks), head.parameters()),
                strict=True,
            )
        )
        for y in predictions
    ]
    for name in names:
        assert gradients[1][name].any() and torch.allclose(*(found[name] for found in gradients), atol=1e-6), name
