"""What holds for all models that read histories: padding, the order of columns, and fields that they cannot read."""

import pytest
import torch

from fuxictr_llm.registry import find_backbone
from histories import ARGUMENTS, SMALL, histories, history_map, reader
from literal import logit_of
from support import params

VARIANTS = [
    ("DIN", {}),
    ("DIN", {"din_use_softmax": True}),
    ("DIEN", {"enable_sum_pooling": True}),
    ("DIEN", {"gru_type": "AIGRU", "attention_type": "din_attention"}),
    ("DIEN", {"gru_type": "GRU"}),
    ("DIEN", {"gru_type": "AGRU", "use_attention_softmax": False, "attention_type": "dot_attention"}),
    ("BST", {}),
    ("BST", {"seq_pooling_type": "sum", "use_causal_mask": True}),
    ("BST", {"seq_pooling_type": "target", "layer_norm": False, "use_residual": False}),
    ("TransAct", {"first_k_cols": 2}),
]


@pytest.mark.parametrize("name, changes", VARIANTS)
def test_the_vector_of_padding_makes_no_difference(name, changes):
    model = reader(name, apart=True, **changes)
    batch = histories(model.feature_map)
    # TransAct reads one step of padding where there is nothing else; DIN's softmax takes the mean of it.
    rows = (batch["click_history"] != 0).any(dim=1)
    before = logit_of(model, batch)[rows]
    with torch.no_grad():
        for field in ("item_id", "cate_id"):
            model.embedding_layer.embedding_layers[field].weight[0] = torch.randn(4) * 5
    torch.testing.assert_close(logit_of(model, batch)[rows], before)


@pytest.mark.parametrize("name, changes", [each for each in VARIANTS if each[0] != "BST"])
def test_padding_may_be_in_front_or_behind(name, changes):
    model = reader(name, apart=True, **changes)
    front, behind = (histories(model.feature_map, padded=side) for side in ("front", "behind"))
    assert not torch.equal(front["click_history"], behind["click_history"])
    torch.testing.assert_close(logit_of(model, front), logit_of(model, behind))


@pytest.mark.parametrize("name, changes", VARIANTS)
def test_histories_of_padding_only_give_finite_numbers_and_gradients(name, changes):
    model = reader(name, **changes).train()
    batch = histories(model.feature_map, rows=3)
    for field in ("click_history", "cate_history"):
        batch[field] = torch.zeros_like(batch[field])
    model._max_gradient_norm = 10.0
    assert torch.isfinite(model.train_step(batch))
    assert all(parameter.grad is None or torch.isfinite(parameter.grad).all() for parameter in model.parameters())
    assert torch.isfinite(logit_of(model.eval(), batch)).all()


@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_order_of_the_columns_makes_no_difference(name):
    model = reader(name)
    batch = histories(model.feature_map)
    assert torch.equal(logit_of(model, batch), logit_of(model, dict(reversed(batch.items()))))


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize(
    "fields, problem",
    [
        (("item", "click_history"), "0 names 'item'; the data set has the fields user_id, .*image$"),
        (("item_id", "clicks"), "1 names 'clicks'; the data set has the fields user_id"),
        (("item_id", "cate_id"), "1 names 'cate_id' of type categorical; sequences in the data set: .*click_history"),
        (("item_id", "tags"), r"1 names 'tags', which .*Pooling.*add {name: tags, feature_encoder: null}"),
        (("cate_history", "click_history"), "0 names 'cate_history', a sequence that is not pooled"),
        ((["item_id", "cate_id"], ["click_history"]), "0 and .*1 must name the same number of fields"),
        (("item_id", "click_history"), "sequence 'cate_history' is not pooled, and the model does not read it"),
    ],
)
def test_fields_that_cannot_be_read_are_named(name, fields, problem):
    arguments = ARGUMENTS[name]
    problem = problem.replace("0 ", f"{arguments[0]} ", 1).replace("1 ", f"{arguments[1]} ", 1)
    settings = params("FM", regularizer=None, **dict(zip(arguments, fields, strict=True)), **SMALL[name])
    with pytest.raises(ValueError, match=problem):
        find_backbone(name)(history_map(), **settings)


@pytest.mark.parametrize(
    "name, changes, problem",
    [
        ("DIEN", {"gru_type": "LSTM"}, "gru_type must be one of GRU, AIGRU, AGRU, AUGRU .got 'LSTM'"),
        ("DIEN", {"attention_type": "dot"}, "attention_type must be one of bilinear_attention, .*got 'dot'"),
        ("DIEN", {"aux_loss_alpha": 1.0, "dien_neg_seq_field": []}, "aux_loss_alpha 1.0 needs as many fields"),
        ("DIEN", {"aux_loss_alpha": 1.0}, "dien_neg_seq_field names 'neg_click_history'; the data set has"),
        ("BST", {"seq_pooling_type": "max"}, "seq_pooling_type must be one of mean, .*got 'max'"),
        ("BST", {"num_heads": 5}, "num_heads must divide the transformer's width 12 .got 5"),
        ("TransAct", {"num_heads": 3}, "num_heads must divide the transformer's width 16 .got 3"),
        ("TransAct", {"first_k_cols": 6}, "first_k_cols must be between 1 and the sequence's length 5 .got 6"),
        ("TransAct", {"use_time_window_mask": True}, "use_time_window_mask needs the times of actions"),
    ],
)
def test_wrong_arguments_are_named(name, changes, problem):
    with pytest.raises(ValueError, match=problem):
        reader(name, **changes)
