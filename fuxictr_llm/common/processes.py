"""The processes that torchrun started, through accelerate's PartialState; an ordinary run is one process."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from accelerate import PartialState

Answer = TypeVar("Answer")
# The main process may download, build and encode for hours while the others wait.
PATIENCE = timedelta(days=1)


def under_torchrun() -> bool:
    """Whether torchrun started several processes; unlike `process_state` it neither imports torch nor connects them."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1


def process_state(gpu: int = -1) -> "PartialState":
    """accelerate's state of all processes, made by the first call, which connects them.

    Args:
        gpu: -1 where the work is done on the CPU; only the first call's counts.
    """
    from accelerate import PartialState

    return PartialState(cpu=gpu < 0, timeout=PATIENCE)


def from_main(compute: Callable[[], Answer]) -> Answer:
    """What `compute` returns in the main process, in every process; it is called in the main process alone."""
    from accelerate.utils import broadcast_object_list

    answers = [compute() if process_state().is_main_process else None]
    return broadcast_object_list(answers)[0]
