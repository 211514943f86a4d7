"""A function mapped over items by processes of Ray Data, on one machine or many."""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from fuxictr_llm.errors import UserError

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def ray_map(
    function: Callable[[Item], Answer], items: Iterable[Item], workers: int, on_gpu: bool = False
) -> Iterator[Answer]:
    """What the function gives for each item, in any order, from a pool of processes that each unpickle it once.

    Args:
        function: picklable; what it loads when it is first called stays loaded.
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
        threads = max(1, (os.cpu_count() or 1) // workers)
        rows = ray.data.from_items([{"item": item} for item in items], override_num_blocks=len(items))
        answers = rows.map_batches(
            _Worker,
            fn_constructor_args=(ray.put(function), threads),
            batch_size=1,
            concurrency=min(workers, len(items)),
            num_gpus=1 if on_gpu else None,
        )
        for row in answers.iter_rows():
            if isinstance(row["answer"], UserError):
                raise row["answer"]
            yield row["answer"]
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
        try:
            return {"answer": [self.function(item) for item in batch["item"].tolist()]}
        except UserError as error:  # Ray would wrap it
            return {"answer": [error]}
