"""Both forms of a batch give the same columns, and taps show either."""

import torch

from fuxictr_llm.enhancement.model import enhance
from fuxictr_llm.host.batches import columns_of, rows_of, synthetic_long_batch
from fuxictr_llm.registry import find_backbone
from support import AllTaps, params, small_feature_map, train


def test_a_tuple_gives_the_rows_columns_and_their_target_items():
    rows = {"user": torch.tensor([7, 8]), "click": torch.tensor([0.0, 1.0])}
    items = {"item": torch.tensor([1, 2, 3, 0, 4, 5]), "tags": torch.arange(12).view(6, 2)}
    batch = (rows, items, torch.tensor([[1.0, 1.0], [0.0, 1.0]]))
    columns = columns_of(batch)
    assert rows_of(batch) == rows_of(columns) == 2
    assert list(columns) == ["user", "click", "item", "tags"]
    assert columns["item"].tolist() == [3, 5] and columns["tags"].tolist() == [[4, 5], [10, 11]]
    assert columns_of(rows) == rows and columns_of(rows) is not rows


class Long(find_backbone("DNN")):
    """Takes FuxiCTR's LongCTR tuples: history and target of all rows are embedded at once."""

    def forward(self, inputs):
        rows, items, mask = inputs
        user = self.embedding_layer(self.get_inputs(rows))  # [B, 1, D]
        places = self.embedding_layer(items).view(*mask.shape[:1], mask.shape[1] + 1, -1)
        target, history = places[:, -1], (places[:, :-1] * mask.unsqueeze(-1)).sum(dim=1)
        self.target = target.detach()
        return {"y_pred": self.output_activation(self.mlp(torch.cat([user.flatten(1), target + history], dim=-1)))}

    def get_labels(self, inputs):
        return inputs[0]["click"].float().view(-1, 1)


def test_tuples_show_each_rows_target_among_its_fields():
    feature_map = small_feature_map("DNN")
    for name in ("price", "tags", "image"):
        del feature_map.features[name]
    feature_map.features["item"]["source"] = "item"
    feature_map.num_fields = feature_map.get_num_fields()
    model = enhance(Long, AllTaps)(feature_map, **params("DNN"))
    assert model.enhancement.anatomy.fields == ("user", "item")
    batch = synthetic_long_batch(feature_map, rows=5)
    train(model, [batch])
    assert model.enhancement.shapes["embeddings"] == (5, 2, 4) and model.enhancement.shapes["loss"] == (5, 1)
    assert torch.equal(model.traced(batch).embeddings[:, 1], model.target)
