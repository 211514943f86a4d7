"""Vectors that do not depend on the number of threads: a sum that several threads share is rounded in another way."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def each_in_one_thread(function: Callable[[Item], Answer], items: Iterable[Item]) -> Iterator[Answer]:
    """What the function gives for each item, in order; torch's threads share the items, not the sums within one.

    The function must not count on what torch keeps for each thread, as whether gradients are on.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        torch.set_num_threads(1)
        yield from pool.map(function, items)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


def in_one_thread() -> AbstractContextManager:
    """In the block, numpy multiplies matrices in one thread."""
    return threadpool_limits(1, "blas")


def of_threads(gpu: int) -> dict[str, int]:
    """How many threads there are, as part of the key of what they train together; on a GPU they do not count."""
    return {"threads": torch.get_num_threads()} if gpu < 0 else {}
