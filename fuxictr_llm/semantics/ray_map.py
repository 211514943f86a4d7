"""A function mapped over items by processes of Ray Data, on one machine or many."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import Any, TypeVar

from fuxictr_llm.errors import UserError

Item = TypeVar("Item")
ERROR = "error"


def ray_map(
    function: Callable[[Item], Any], items: Iterable[Item], workers: int, on_gpu: bool = False
) -> Iterator[dict[str, Any]]:
    """What the function gives for each item, in any order, from a pool of processes that each unpickle it once.

    Args:
        function: gives a dataclass of plain values, which comes back as a dict; what it loads when it is first called
            stays loaded.
        workers: how many processes; with fewer items so many.
        on_gpu: whether each needs a GPU of its own.

    Raises:
        UserError: the function raised it.
    """
    items = list(items)
    if not items:
        return
    import ray

    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    try:
        ray.data.DataContext.get_current().enable_progress_bars = False
        threads = max(1, int(ray.cluster_resources().get("CPU", 1)) // workers)
        rows = ray.data.from_items([{"item": item} for item in items], override_num_blocks=len(items))
        answers = rows.map_batches(
            _Worker,
            fn_constructor_args=(ray.put(function), threads),
            batch_size=1,
            concurrency=min(workers, len(items)),
            num_cpus=threads,
            num_gpus=1 if on_gpu else None,
        )
        # One block an item; none is fetched ahead, so that an answer is here as soon as it is made.
        for block in answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            for row in block.to_pylist():
                if ERROR in row:
                    raise UserError(row[ERROR])
                yield row
    finally:
        if started:
            ray.shutdown()


class _Worker:
    def __init__(self, function: Any, threads: int):
        import ray
        import torch

        torch.set_num_threads(threads)
        self.function = ray.get(function) if isinstance(function, ray.ObjectRef) else function

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        (item,) = batch["item"].tolist()
        try:
            return {key: [value] for key, value in asdict(self.function(item)).items()}
        except UserError as error:  # Ray would wrap it
            return {ERROR: [str(error)]}
