"""What the literal tests of the backbones share: a small model with telling weights, and slow versions of its parts.

Shape symbols: `B` rows, `F` fields, `D` embedding dim.
"""

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import LogisticRegression, MLP_Block
from fuxictr.pytorch.torch_utils import seed_everything
from torch import Tensor, nn

from fuxictr_llm.host.batches import synthetic_batch
from fuxictr_llm.registry import find_backbone
from support import params, small_feature_map

ACTIVATIONS = (nn.ReLU, nn.Sigmoid, nn.Tanh, nn.Softmax)


def build_backbone(name: str, feature_map: FeatureMap | None = None, **changes) -> nn.Module:
    """A small model in evaluation mode whose every parameter and BatchNorm statistic is drawn far from zero.

    The default feature map has categorical, numeric and sequence fields (F = 4); D = 4.
    """
    seed_everything(1)
    feature_map = feature_map or small_feature_map("FM")
    model = find_backbone(name)(feature_map, **{**params("FM", regularizer=None), "model_id": name, **changes})
    randomize(model)
    return model.eval()


def randomize(model: nn.Module) -> None:
    """Draw all floating-point parameters and BatchNorm statistics; padding rows stay zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.normal_(std=0.8, generator=generator)
        for module in model.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(std=0.3, generator=generator)
                module.running_var.uniform_(0.5, 2, generator=generator)


def batch_of(model: nn.Module, rows: int = 5) -> dict[str, Tensor]:
    """A fixed random batch of the model's columns, labels included."""
    return synthetic_batch(model.feature_map, rows)


def fields_of(model: nn.Module, batch: dict[str, Tensor], embedding: str = "embedding_layer") -> Tensor:
    """`[B, F, D]`, in feature-map order, from the model's FeatureEmbedding of that name."""
    return model.get_submodule(embedding)(model.get_inputs(batch))


def linear_literal(layer: LogisticRegression, batch: dict[str, Tensor]) -> Tensor:
    """`w_0 + sum_i w_i x_i`, `[B]`, row by row and field by field."""
    weights = layer.embedding_layer.embedding_layer.embedding_layers
    out = torch.zeros(len(next(iter(batch.values()))))
    for row in range(len(out)):
        out[row] = 0 if layer.bias is None else layer.bias[0]
        for field, weight in weights.items():
            value = batch[field][row]
            out[row] += weight.weight[0, 0] * value if isinstance(weight, nn.Linear) else weight.weight[value].sum()
    return out


def mlp_literal(block: MLP_Block, x: Tensor) -> Tensor:
    """`[B, in] -> [B, out]`: each layer of the block written out, as it is in evaluation mode."""
    for layer in block.mlp:
        if isinstance(layer, nn.Linear):
            x = x @ layer.weight.T + (0 if layer.bias is None else layer.bias)
        elif isinstance(layer, nn.BatchNorm1d):
            x = (x - layer.running_mean) / (layer.running_var + layer.eps).sqrt() * layer.weight + layer.bias
        elif not isinstance(layer, nn.Dropout):
            assert isinstance(layer, ACTIVATIONS), layer
            x = layer(x)
    return x


def logit_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """`[B, 1]`, what the model's last output activation was given; `y_pred` is checked to be its sigmoid."""
    seen = []
    handle = model.output_activation.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    with torch.no_grad():
        y_pred = model.forward(batch)["y_pred"]
    handle.remove()
    assert torch.equal(y_pred, torch.sigmoid(seen[-1]))
    return seen[-1]


def assert_logit(model: nn.Module, batch: dict[str, Tensor], expected: Tensor) -> None:
    """The model's logit is `expected`, `[B]` or `[B, 1]`, which differs from row to row."""
    logit = logit_of(model, batch)
    assert logit.shape == (len(expected), 1) and logit.std() > 0.05
    torch.testing.assert_close(logit.flatten(), expected.detach().flatten(), rtol=1e-4, atol=1e-5)
