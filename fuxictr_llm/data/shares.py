"""What each of several processes (torchrun) reads of a loader's batches, and how their answers are put together.

In training, every process takes its share of the rows of every batch, so that all together see the batches of one
process. In evaluation, every process takes whole batches in turn: a batch is computed as one process would.

Shape symbols: `B` rows of a batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.processes import gathered, process_count, process_index
from fuxictr_llm.host.batches import Batch, rows_of

RAY_UNSHARED = (
    "data_loader: ray reads the rows in another order in each process: torchrun's processes cannot share them; set "
    "data_loader: memory, or blocks for data that does not fit in memory once for each process"
)
FEWEST_ROWS = 2  # of a share: BatchNorm has no statistics of one row


def share_of(rows: int, index: int, count: int) -> slice:
    """The rows of a batch that a process takes; of a batch of very few rows (the last one), every process takes all.

    Args:
        rows: B.
        index, count: the process, and how many there are.
    """
    if rows < FEWEST_ROWS * count:
        return slice(0, rows)
    return slice(rows * index // count, rows * (index + 1) // count)


def own_shares(rows: Any) -> Iterator[Batch]:
    """The batches to train on: this process's share of each batch of the loader.

    Raises:
        UserError: there are several processes, and the loader cannot be shared.
    """
    if process_count() == 1:
        return iter(rows)
    check_shareable(rows)
    return rows.shares(process_index(), process_count())


def check_shareable(rows: Any) -> None:
    """Check that processes can share a loader.

    Raises:
        UserError: each would read the rows in an order of its own.
    """
    if not getattr(rows, "starts_anywhere", False):  # InMemoryLoader's, and what stands on it
        raise UserError(RAY_UNSHARED)


class OwnBatches:
    """The batches of a loader that this process evaluates; notes the rows of each, to put all answers into order."""

    def __init__(self, rows: Any):
        self.rows = rows
        self.sizes: list[int] = []

    def __iter__(self) -> Iterator[Batch]:
        self.sizes = []
        index, count = process_index(), process_count()
        in_turn = count > 1 and hasattr(self.rows, "batches_in_turn")
        for batch in self.rows.batches_in_turn(index, count) if in_turn else islice(self.rows, index, None, count):
            self.sizes.append(rows_of(batch))
            yield batch

    def gathered(self, *answers: np.ndarray | None) -> list[Any]:
        """Each of the answers, one value a row of these batches, of all processes, in the order of the loader's rows.

        Args:
            answers: arrays with one value or several a row, or None.
        """
        if process_count() == 1:
            return list(answers)
        parts = gathered((self.sizes, answers))
        sizes = [sizes for sizes, _ in parts]
        return [_in_order(sizes, [own[place] for _, own in parts]) for place in range(len(answers))]


def _in_order(sizes: Sequence[Sequence[int]], answers: Sequence[Any]) -> np.ndarray | None:
    """The answers of processes that took batches in turn, in the order of the batches.

    Args:
        sizes: of each process, the rows of each of its batches.
        answers: of each process; a process without batches may have None.
    """
    if answers[0] is None:  # the first process has a batch if any has
        return None
    chunks = [_split(own, of) for own, of in zip(answers, sizes, strict=True)]
    count, batches = len(chunks), sum(map(len, sizes))
    in_turn: Iterable[np.ndarray] = (chunks[place % count][place // count] for place in range(batches))
    return np.concatenate([answers[0][:0], *in_turn])


def _split(answers: Any, sizes: Sequence[int]) -> list[np.ndarray]:
    return np.split(answers, np.cumsum(sizes)[:-1]) if sizes else []
