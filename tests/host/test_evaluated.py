"""Texts that FuxiCTR evaluates: what its published configs use is let through, code is not and leaves no mark."""

from pathlib import Path

import pytest
import torch
from fuxictr.pytorch.layers import FeatureEmbeddingDict
from fuxictr.pytorch.models import BaseModel
from fuxictr.pytorch.torch_utils import get_initializer, get_loss, get_optimizer

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.host.evaluated import _losses, check_columns, check_settings, is_initializer, is_layer
from fuxictr_llm.registry import find_backbone

CODE = "open('owned', 'w')"
CODE_TEXTS = [
    CODE,
    f"{CODE},",
    f"[{CODE}]",
    f"({CODE})",
    f"lambda: {CODE}",
    f"(x := {CODE})",
    f"f'{{{CODE}}}'",
    f"None if {CODE} else None",
    f"{CODE} and layers.MaskedSumPooling()",
    f"[layers.MaskedSumPooling() for _ in [{CODE}]][0]",
    f"{{1: {CODE}}}",
    f"*{CODE}",
    "__import__('pathlib').Path('owned').touch()",
    CODE.encode(),
    "\n" + CODE,
    "\x00",
    "-" * 100_000 + "1",
    "(" * 250 + ")" * 250,
    "",
    7,
    {"a": 1},
]
LAYER_TEXTS = [
    "layers.MaskedAveragePooling()",
    " layers.MaskedSumPooling()",
    "layers.KMaxPooling(2, dim=1)",
    "layers.MLP_Block(64, hidden_units=[32, 16], output_dim=8, hidden_activations='relu', dropout_rates=0.1)",
    "layers.MLP_Block(64, hidden_units=[32], hidden_activations=['Sigmoid'], output_activation=None)",
    "nn.Linear(64, 64, bias=False)",
    "nn.LayerNorm((4,), eps=1e-5)",
    "nn.Identity()",
]
INITIALIZER_TEXTS = [
    "partial(nn.init.normal_, std=1e-4)",
    "partial(nn.init.uniform_, a=-0.1, b=0.1)",
    "nn.init.xavier_normal_",
    "torch.nn.init.xavier_uniform_",
    "partial(nn.init.kaiming_normal_, mode='fan_in', nonlinearity='relu')",
    "lambda w: nn.init.normal_(w, std=1e-4)",
    "lambda w: nn.init.normal_(w, 0, 1e-4)",
]


@pytest.mark.parametrize("text", LAYER_TEXTS)
def test_layers_with_numbers_are_let_through_and_are_what_fuxictr_builds(text):
    assert is_layer(text)
    assert isinstance(FeatureEmbeddingDict.get_feature_encoder(None, text), torch.nn.Module)


@pytest.mark.parametrize("text", INITIALIZER_TEXTS)
def test_initializers_are_let_through_and_are_what_fuxictr_calls(text):
    assert is_initializer(text)
    get_initializer(text)(torch.empty(3, 2))


@pytest.mark.parametrize(
    "text",
    [
        *CODE_TEXTS,
        *(f"{call}({CODE})" for call in ("layers.MaskedSumPooling", "nn.Linear", "nn.Identity")),
        *(
            f"nn.Linear(4, {inner})"
            for inner in ("'4'", "4 * 4", "a", "*[4]", "**{'a': 4}", "1j", "b'4'", "...", "{4}")
        ),
        f'layers.FeatureEmbedding("x", 4, "{CODE}")',
        f'layers.FeatureEmbeddingDict("x", 4, embedding_initializer="{CODE}")',
        f'layers.get_initializer("{CODE}")',
        f'layers.MLP_Block(4, hidden_units=[4], hidden_activations="{CODE}")',
        f"layers.MLP_Block(4, hidden_activations={CODE})",
        "layers.PretrainedEmbedding('x', {}, 'file', 'file', 4, 4)",
        "layers.Absent()",
        "layers.MaskedSumPooling",
        "layers.MaskedSumPooling()()",
        "layers.torch.load('owned')",
        "nn.Module()",
        "nn.Sequential()",
        "nn.modules.Linear(4, 4)",
        "nn.init.normal_(4)",
        "torch.load('owned')",
        "Linear(4, 4)",
        "layers.MaskedSumPooling()\n",
        "layers.MaskedSumPooling(); x",
        f"nn.Linear(4, {'1' * 5000})",
    ],
)
def test_other_texts_are_no_layers(text):
    if text == "layers.MaskedSumPooling()\n":  # what follows is nothing
        assert is_layer(text)
        return
    assert not is_layer(text) and not is_layer([text])
    if text:
        with pytest.raises(UserError, match="column 'tags': feature_encoder is .* in 'it', and FuxiCTR") as raised:
            check_columns({"tags": {"feature_encoder": text}}, "'it'")
        with pytest.raises(UserError, match="allowed are only null, a layer whose arguments are numbers"):
            check_columns({"tags": {"feature_encoder": ["layers.MaskedSumPooling()", text]}}, "'it'")
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 1200
    assert not Path("owned").exists()


@pytest.mark.parametrize(
    "text",
    [
        *CODE_TEXTS,
        "exit",
        "breakpoint",
        "xavier_normal_",
        "nn.init",
        "nn.init.torch",
        "nn.init._no_grad_normal_",
        "nn.init.normal_()",
        "nn.init.normal_.__globals__",
        f"nn.init.normal_({CODE})",
        f"partial(nn.init.normal_, std={CODE})",
        f"partial(nn.init.normal_, {CODE})",
        f"partial({CODE}, std=1)",
        "partial(exit)",
        "partial()",
        "partial(nn.init.normal_, **{'std': 1})",
        "partial(nn.init.kaiming_normal_, mode='other')",
        f"lambda w: {CODE}",
        f"lambda w: nn.init.normal_(w, {CODE})",
        f"lambda w, x={CODE}: nn.init.normal_(w)",
        f"lambda w={CODE}: nn.init.normal_(w)",
        "lambda w: nn.init.normal_(x)",
        "lambda: nn.init.normal_(w)",
    ],
)
def test_other_texts_are_no_initializers(text):
    assert not is_initializer(text) and not Path("owned").exists()


def test_no_encoder_is_one_too():
    check_columns({"a": {"feature_encoder": None}, "b": {}, "c": {"feature_encoder": ""}, "d": 3}, "it")


class Own(BaseModel):
    def compile(self, optimizer, loss, lr):
        pass


def test_losses_and_optimizers_are_those_that_fuxictr_finds():
    backbone = find_backbone("DeepFM")
    for loss in ("binary_crossentropy", "bce", "binary_cross_entropy", "mse_loss", ["bce", "mse_loss"]):
        check_settings({"loss": loss}, backbone, "it")
    assert all(callable(get_loss(loss)) for loss in _losses())
    for optimizer in ("adam", "Adam", "SGD", "AdamW"):
        check_settings({"optimizer": optimizer}, backbone, "it")
        get_optimizer(optimizer, [torch.nn.Parameter(torch.zeros(1))], 0.1)
    with pytest.raises(UserError, match="config key 'loss' is 'focal' in it, .* mse_loss"):
        check_settings({"loss": "focal"}, backbone, "it")
    with pytest.raises(UserError, match="key 'optimizer' is 'Adagrd' .*did you mean 'Adagrad'"):
        check_settings({"optimizer": "Adagrd"}, backbone, "it")
    check_settings({"loss": "focal", "optimizer": "Lion"}, Own, "it")  # what its own compile knows
    for cls in (backbone, Own):
        with pytest.raises(UserError, match="key 'loss' is .*open"):
            check_settings({"loss": ["bce", f"x if 0 else {CODE}"]}, cls, "it")
