"""What a served network takes: its weights and stored vectors, and the time of a batch."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fuxictr_llm import registry
from fuxictr_llm.host.batches import synthetic_batch
from fuxictr_llm.serving.export import exported_content
from fuxictr_llm.serving.load import ServedModel, build_exported

AFFECTS_RESULTS = False  # see common/code_digest.py

BATCH_ROWS, THREADS = 512, 1
SECONDS, FEWEST_BATCHES = 0.2, 5


def cost_of_serving(record: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the export of a run takes on the CPU, without writing it.

    Args:
        record: of the run.
        state: what its weights file holds.

    Returns:
        `parameters` (weights and stored vectors, of shared ones each once), and `milliseconds` that the fastest of
        some batches of `batch_rows` random rows took with `threads`: from ids to probabilities.

    Raises:
        UserError: the run cannot be exported.
    """
    config, tensors, _ = exported_content(record, state, Path(record["model_id"]))
    cls = registry.find_backbone(record["config"]["model"])
    served = ServedModel(build_exported(cls, config, tensors, repr(record["model_id"]), gpu=-1), config)
    stored = {id(tensor): tensor for tensor in served.model.state_dict(keep_vars=True).values()}
    parameters = sum(tensor.numel() for tensor in stored.values() if tensor.is_floating_point())
    batch = synthetic_batch(served.model.feature_map, BATCH_ROWS)
    with _threads(THREADS):
        seconds = _fastest(lambda: served.predict(batch))
    facts = {"parameters": parameters, "milliseconds": round(1000 * seconds, 4)}
    return {**facts, "batch_rows": BATCH_ROWS, "threads": THREADS}


def _fastest(call: Callable[[], Any]) -> float:
    """Seconds of the fastest call: whatever else the machine does only adds to the others."""
    call()
    times: list[float] = []
    while len(times) < FEWEST_BATCHES or sum(times) < SECONDS:
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
