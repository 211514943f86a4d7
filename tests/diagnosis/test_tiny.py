"""What a model class can take of the tiny data set, and how it is built small."""

import pytest
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.diagnosis.tiny import active_regularization, tiny_case, train
from fuxictr_llm.diagnosis.tiny_columns import tiny_feature_map
from fuxictr_llm.host.batches import columns_of
from fuxictr_llm.registry import find_backbone


def test_there_is_something_to_learn():
    case = tiny_case(find_backbone("DNN"), learning_rate=0.02)
    model, batches = case.build(), case.batches(rows=600)
    for _ in range(12):
        losses = train(model, batches)
    assert sum(losses) / len(losses) < 0.6


def test_histories_that_a_constructor_names_are_whole_and_share_their_items_embedding():
    class Reader(Plain):
        def __init__(self, feature_map, history=("click_history", "neg_click_history"), **params):
            super().__init__(feature_map, **params)

    specs = tiny_case(Plain).feature_map.features
    assert specs["click_history"]["feature_encoder"] and "neg_click_history" not in specs
    assert {specs["item_id"]["vocab_size"]} == {specs["click_history"]["vocab_size"]}
    assert "RuntimeError" in tiny_case(Reader).left_out["sequence"], "whole histories cannot stand beside single ids"
    whole = tiny_feature_map(whole=["click_history", "neg_click_history"]).features
    assert all("feature_encoder" not in whole[name] for name in ("click_history", "neg_click_history"))
    assert whole["neg_click_history"]["share_embedding"] == "item_id"


class Plain(BaseModel):
    def __init__(self, feature_map, hidden_units=[64, 32], hidden_activations="ReLU", learning_rate=1e-3, **params):  # noqa: B006
        super().__init__(feature_map, **params)
        self.embedding_layer = FeatureEmbedding(feature_map, params["embedding_dim"])
        self.mlp = MLP_Block(
            input_dim=feature_map.sum_emb_out_dim(),
            output_dim=1,
            hidden_units=hidden_units,
            hidden_activations=hidden_activations,
        )
        self.compile(params["optimizer"], params["loss"], learning_rate)

    def forward(self, inputs):
        logit = self.mlp(self.embedding_layer(self.get_inputs(inputs), flatten_emb=True))
        return {"y_pred": self.output_activation(logit)}


class NoVectors(Plain):
    def __init__(self, feature_map, **params):
        if any(spec["type"] == "embedding" for spec in feature_map.features.values()):
            raise ValueError("no vectors, please")
        super().__init__(feature_map, **params)


def test_a_type_that_a_class_cannot_take_is_left_out_and_the_reason_kept():
    case = tiny_case(NoVectors)
    assert [*case.left_out] == ["embedding"] and "no vectors, please" in case.left_out["embedding"]
    assert "image" not in case.feature_map.features and "price" in case.feature_map.features
    assert tiny_case(find_backbone("DeepFM")).left_out == {}
    assert tiny_case(Plain).left_out == {}
    assert tiny_case(Plain).settings["hidden_units"] == [8, 8]


class Silent(Plain):
    def forward(self, inputs):
        return {"score": super().forward(inputs)["y_pred"]}


class Frozen(BaseModel):
    def __init__(self, feature_map, **params):
        super().__init__(feature_map, **params)
        self.compile(params["optimizer"], params["loss"], 1e-3)


class Strict(BaseModel):
    def __init__(self, feature_map):
        pass


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (Silent, "Silent cannot be tapped: its forward returns no 'y_pred'"),
        (Frozen, "Frozen has no trainable parameter"),
        (Strict, "the constructor of Strict rejects the key 'model_id'"),
    ],
)
def test_a_class_that_cannot_be_used_is_one_line_that_says_why(cls, reason):
    with pytest.raises(UserError, match=reason):
        tiny_case(cls)


def test_a_model_of_long_histories_gets_tuples():
    class Long(Plain):
        def get_inputs(self, inputs, feature_source=None):
            rows, items, mask = inputs
            self.shapes = len(rows["user_id"]), len(items["item_id"]), tuple(mask.shape)
            return super().get_inputs(columns_of(inputs))

        def get_labels(self, inputs):
            return super().get_labels(inputs[0])

    case = tiny_case(Long)
    assert case.is_long and case.left_out == {}
    model = case.build()
    train(model, case.batches(rows=7))
    assert model.shapes == (7, 7 * 6, (7, 5))


def test_regularization_is_switched_on_as_far_as_a_constructor_takes_it():
    assert active_regularization(find_backbone("FM")) == {"regularizer": 1e-4}
    assert active_regularization(find_backbone("DNN"))["batch_norm"] is True
    assert "net_dropout" not in active_regularization(Plain)
