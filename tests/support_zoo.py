"""A FuxiCTR checkout in small: its layout, with models of our own."""

import textwrap
from pathlib import Path

NET = """
import torch
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel


class {name}(BaseModel):
    def __init__(self, feature_map, model_id="{name}", gpu=-1, learning_rate=1e-3, embedding_dim=4,
                 hidden_units=[8], embedding_regularizer=None, net_regularizer=None, **kwargs):
        super().__init__(feature_map, model_id=model_id, gpu=gpu, embedding_regularizer=embedding_regularizer,
                         net_regularizer=net_regularizer, **kwargs)
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        self.mlp = MLP_Block(feature_map.sum_emb_out_dim(), hidden_units=hidden_units, output_dim=1)
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        X = self.get_inputs(inputs)
        logit = self.mlp(self.embedding_layer(X).flatten(start_dim=1))
        return {{"y_pred": self.output_activation(logit)}}
"""
# Of tuple batches: the sum of the latest of the history beside the target, and a train_step of its own. As in FuxiCTR's
# own, a history shorter than `short_seq_len` does not fit its mask.
LONG_NET = """
import torch
from torch import nn
from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
from fuxictr.pytorch.models import BaseModel


class DIN(BaseModel):
    def __init__(self, feature_map, model_id="DIN", gpu=-1, learning_rate=1e-3, embedding_dim=4, short_seq_len=2,
                 embedding_regularizer=None, net_regularizer=None, **kwargs):
        super().__init__(feature_map, model_id=model_id, gpu=gpu, embedding_regularizer=embedding_regularizer,
                         net_regularizer=net_regularizer, **kwargs)
        self.embedding_layer = FeatureEmbedding(feature_map, embedding_dim)
        of_items = [f for f, spec in feature_map.features.items() if spec.get("source") == "item"]
        self.width, self.short_seq_len = embedding_dim * len(of_items), short_seq_len
        self.dnn = MLP_Block(feature_map.sum_emb_out_dim() + self.width, hidden_units=[8], output_dim=1)
        self.compile(kwargs["optimizer"], kwargs["loss"], learning_rate)
        self.reset_parameters()
        self.model_to_device()

    def forward(self, inputs):
        rows, items, mask = self.get_inputs(inputs)
        of_rows = self.embedding_layer(rows, flatten_emb=True)
        of_items = self.embedding_layer(items, flatten_emb=True).view(len(mask), -1, self.width)
        latest = slice(-self.short_seq_len, -1)
        history = (of_items[:, latest] * mask[:, latest].unsqueeze(-1)).sum(dim=1)
        logit = self.dnn(torch.cat([of_rows, of_items[:, -1], history], dim=-1))
        return {"y_pred": self.output_activation(logit)}

    def get_inputs(self, inputs, feature_source=None):
        rows, items, mask = inputs
        return super().get_inputs(rows), {k: v.to(self.device) for k, v in items.items()}, mask.to(self.device)

    def get_labels(self, inputs):
        return super().get_labels(inputs[0])

    def train_step(self, batch):
        loss = self.compute_loss(self.forward(batch), self.get_labels(batch))
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters(), self._max_gradient_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss
"""
NEVER = "raise RuntimeError('this file must not run')\n"
FILES = {
    "__init__.py": NEVER,
    "DNN/DNN_torch/run_expid.py": NEVER,
    "DNN/DNN_torch/src/__init__.py": NEVER,
    "DNN/DNN_torch/src/DNN.py": NET.format(name="DNN"),
    "DNN/DNN_tf/src/DNN.py": "from fuxictr.tensorflow.models import BaseModel\nclass DNN(BaseModel):\n    pass\n",
    "AFM/src/AFM.py": "import torch\nfrom .layers import Pooling, Plain\nfrom fuxictr.pytorch.models import BaseModel\n"
    + NET.format(name="AFM"),
    "AFM/src/layers.py": "class Pooling: pass\nclass Plain: pass\n",
    "APG/src/__init__.py": "from .APG_A import *\nfrom .APG_B import *\n",
    "APG/src/APG_A.py": "import fuxictr.pytorch.models as m\nclass APG_A(m.BaseModel):\n    pass\n",
    "APG/src/APG_B.py": "from .APG_A import APG_A as Base\nclass APG_B(Base):\n    pass\nclass Layer(dict):\n    pass\n",
    "DIN/src/DIN.py": NET.format(name="DIN"),
    "LongCTR/__init__.py": NEVER,
    "LongCTR/DIN/DIN.py": LONG_NET,
    "LongCTR/ETA/ETA.py": LONG_NET.replace("DIN", "ETA"),
    "QNN/src/Twin.py": NET.format(name="Twin"),
    "PNN/src/Twin.py": NET.format(name="Twin"),
    "SAM/a/SAM.py": NET.format(name="SAM"),
    "SAM/b/SAM.py": NET.format(name="SAM"),
    "Broken/src/Broken.py": "class Broken(BaseModel:\n    pass\n",
    "Deep/src/Deep.py": f"x = {'-' * 200_000}1\n",  # too much for Python's parser
    "Lost/src/Lost.py": "import no_such_module\n" + NET.format(name="Lost"),
    "Fake/src/Fake.py": "class BaseModel:\n    pass\n",
    "Fake/src/Fraud.py": "from .Fake import BaseModel\nclass Fraud(BaseModel):\n    pass\n",
}


def write_checkout(folder: Path) -> Path:
    """Write it; its root."""
    for name, text in FILES.items():
        file = folder / "model_zoo" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text), encoding="utf-8")
    return folder
