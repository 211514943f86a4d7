"""Models of any class: what is wrong with one is said before training, or in one line."""

from pathlib import Path

import pytest

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.registry import find_backbone
from fuxictr_llm.training.build import build
from fuxictr_llm.training.loop import fit
from support import batches, params, small_feature_map
from support_zoo import NET

MY_NET = NET.format(name="MyNet")
NO_WEIGHTS = """
from fuxictr.pytorch.models import BaseModel

class MyNet(BaseModel):
    def __init__(self, feature_map, **kwargs):
        super().__init__(feature_map, **kwargs)
        self.compile(kwargs["optimizer"], kwargs["loss"], 1e-3)
"""
SETTINGS = {**params("DNN"), "seed": 1, "num_threads": 1}


def model_of(text):
    Path("my_net.py").write_text(text)
    return build(find_backbone("my_net.py:MyNet"), small_feature_map("DNN"), SETTINGS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            MY_NET.replace("**kwargs):", "optimizer=None):", 1),
            "the constructor of MyNet rejects the key 'task'; give it",
        ),
        (NO_WEIGHTS, "MyNet has no trainable parameter"),
        (
            MY_NET.replace("self.compile", "self.requires_grad_(False); self.compile"),
            "MyNet has no trainable parameter",
        ),
        (MY_NET.replace("self.compile(", "("), "the constructor of MyNet makes no optimizer; it has to end with"),
    ],
)
def test_a_class_that_cannot_be_built_says_why(text, message):
    with pytest.raises(UserError, match=message):
        model_of(text)


def test_a_forward_without_y_pred_is_named():
    model = model_of(MY_NET.replace('"y_pred"', '"y"'))
    rows = batches("DNN")
    with pytest.raises(UserError, match="forward of MyNet returns no 'y_pred'; return a dict that has it"):
        fit(model, rows, rows, {**SETTINGS, "epochs": 1})
