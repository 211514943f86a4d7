"""Both forms of a batch give the same columns."""

import torch

from fuxictr_llm.batches import columns_of, rows_of


def test_a_tuple_gives_the_rows_columns_and_their_target_items():
    rows = {"user": torch.tensor([7, 8]), "click": torch.tensor([0.0, 1.0])}
    items = {"item": torch.tensor([1, 2, 3, 0, 4, 5]), "tags": torch.arange(12).view(6, 2)}
    batch = (rows, items, torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    columns = columns_of(batch)
    assert rows_of(batch) == rows_of(columns) == 2
    assert list(columns) == ["user", "click", "item", "tags"]
    assert columns["item"].tolist() == [3, 5] and columns["tags"].tolist() == [[4, 5], [10, 11]]
    assert columns_of(rows) == rows and columns_of(rows) is not rows
