"""What the benchmarks share: a model of a common size, and ratios of two things measured in turn."""

import statistics
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from fuxictr.features import FeatureMap

from fuxictr_llm.enhancement.model import enhance
from fuxictr_llm.registry import find_backbone
from fuxictr_llm.training.devices import keep_freed_memory
from fuxictr_llm.training.optimizers import configure_optimizer
from fuxictr_llm.training.step import TrainingStep
from support import params


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def criteo_like(backbone: str, method: Any = None, values: int = 10_000, **changes: Any) -> Any:
    """DeepFM over 39 fields x 10,000 values (or another number), D=16, hidden units [400, 400, 400]."""
    feature_map = FeatureMap("criteo_like", "unused")
    spec = {"type": "categorical", "source": "", "padding_idx": 0, "vocab_size": values}
    feature_map.features = OrderedDict((f"f{index}", dict(spec)) for index in range(39))
    feature_map.labels, feature_map.num_fields, feature_map.default_emb_dim = ["click"], 39, 16
    feature_map.set_column_index()
    settings = {"embedding_dim": 16, "hidden_units": [400, 400, 400], "net_dropout": 0.0, "batch_norm": False}
    settings |= {"embedding_regularizer": None, "net_regularizer": None, "learning_rate": 1e-3, **changes}
    cls = find_backbone(backbone)
    model = (cls if method is None else enhance(cls, method))(feature_map, **params(backbone, **settings))
    model._max_gradient_norm = 10.0
    return model


def our_step(model: Any, **settings: Any) -> Callable[[Any], Any]:
    """What our loop does with a batch, by default or with other settings."""
    keep_freed_memory(model.device)
    model.train()
    configure_optimizer(model, settings)
    step = TrainingStep(model, settings)
    return lambda batch: step(batch, 0)


def in_turn(a: Callable[[], Any], b: Callable[[], Any], rounds: int) -> float:
    """Median of the ratios a / b of neighbouring calls."""
    a(), b()
    ratios = []
    for index in range(rounds):
        pair = (seconds(a), seconds(b)) if index % 2 else (seconds(b), seconds(a))[::-1]
        ratios.append(pair[0] / pair[1])
    return statistics.median(ratios)
