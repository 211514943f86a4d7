"""Several processes under torchrun: who does what first, and what all are told."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

Answer = TypeVar("Answer")
# The first process may download and build for long while the others wait.
PATIENCE = timedelta(days=1)


def world_size() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def is_first() -> bool:
    """Whether this is the process that downloads, builds, writes and prints."""
    return int(os.environ.get("RANK") or 0) == 0


def local_index() -> int:
    """The index of this process on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK") or 0)


def wait_for_all() -> None:
    """Go on when every process is here."""
    if world_size() > 1:
        _group().barrier()


@contextmanager
def first_one_first() -> Iterator[None]:
    """The block runs in the first process, and then in the others, which find what it made."""
    if not is_first():
        wait_for_all()
    yield
    if is_first():
        wait_for_all()


def as_the_first_says(ask: Callable[[], Answer]) -> Answer:
    """What `ask` returns in the first process, told to all."""
    if world_size() == 1:
        return ask()
    told: list[Any] = [ask() if is_first() else None]
    _group().broadcast_object_list(told)
    return told[0]


def _group() -> Any:
    import torch

    if not torch.distributed.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        torch.distributed.init_process_group(backend, timeout=PATIENCE)
    return torch.distributed
