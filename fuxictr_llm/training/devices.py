"""Training on several devices: torchrun starts a process for each, and they train one model together (DDP).

`batch_size` is that of all processes together. Each computes the gradients of its share of the rows of every batch
(`data/shares.py`), and their weighted mean is the gradient of the whole batch, as in one process: exact where a loss is
a mean over rows, as FuxiCTR's, LLaCTR's and ELEC's are; a regularizer enters once. In evaluation the processes take
whole batches in turn, and the model's own `evaluate` measures the predictions of all, in the order of one process.

Without torchrun, everything here does nothing.
"""

import ctypes
import logging
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from fuxictr.pytorch.models import BaseModel
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from fuxictr_llm.common.errors import UserError, reason_of
from fuxictr_llm.common.processes import from_main, process_count, process_index, process_state, under_torchrun
from fuxictr_llm.common.progress import Watched
from fuxictr_llm.data.shares import OwnBatches
from fuxictr_llm.host.batches import rows_of

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
# Gradients that are sent at once. On a CPU, a tenth of a step's time is saved where they fit the cache; torch's 25
# elsewhere.
MB_A_MESSAGE = {"cpu": 8}
STEPS_A_QUESTION = 50  # between two times at which the main process is asked whether a checkpoint is due
# Words in the errors that torch raises where another process is gone.
LOST = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")


def keep_freed_memory(device: torch.device) -> None:
    """Make glibc keep the memory of freed tensors for the next step, on a CPU.

    By default it returns tensors of some MiB to the system after every step and asks for them again in the next one,
    and the system fills each page with zeros: a fifth of a step's time. Other C libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if device.type == "cpu" and sys.platform == "linux" else None
    if mallopt is not None:
        for threshold in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            mallopt(threshold, 2**31 - 1)


def check_together(params: Mapping[str, Any]) -> None:
    """Check that the processes of torchrun can train together, before anything is computed.

    Raises:
        UserError: there are more of them than rows in a batch, or GPUs cannot share what is updated by rows.
    """
    if params["batch_size"] < process_count():
        raise UserError(
            f"batch_size {params['batch_size']} is that of all processes together, and torchrun started "
            f"{process_count()}: raise batch_size, or start fewer with --nproc_per_node"
        )
    if under_torchrun() and params.get("embedding_update") == "rows" and params["gpu"] >= 0:
        raise UserError(
            "embedding_update: rows: GPUs share no gradients of rows (NCCL has no sparse tensors); set "
            "embedding_update: dense, or train on one GPU without torchrun, or on CPUs"
        )


def refuse(model: BaseModel, what: str) -> None:
    """Refuse a model that does something in a way of its own, where there are several processes.

    Raises:
        UserError: there are.
    """
    if under_torchrun():
        raise UserError(f"{type(model).__name__} {what} of its own: train it in one process, without torchrun")


class SharedModule:
    """A module whose forward pass is a loss, and whose gradients are those of the batches of all processes.

    Args:
        module: its output is a scalar, the mean over the rows of a batch.
        model: the model in it.
    """

    def __init__(self, module: nn.Module, model: BaseModel):
        self.model = model
        self.module: nn.Module = module
        if under_torchrun():
            process_state(-1 if model.device.type == "cpu" else 0)
            _synchronize_batch_norm(model)
            # Of a parameter that no process used, the gradient stays None, as in one process.
            self.module = DistributedDataParallel(
                module,
                find_unused_parameters=True,
                gradient_as_bucket_view=True,
                bucket_cap_mb=MB_A_MESSAGE.get(model.device.type),
            )

    def __call__(self, batch: Any, rows: int) -> Tensor:
        """The loss of this process's share of a batch, weighted so that the mean over processes is the batch's.

        Args:
            rows: of the share.
        """
        loss = self.module(batch)
        if not under_torchrun():
            return loss
        all_rows = torch.full((), float(rows), device=loss.device)
        distributed.all_reduce(all_rows)
        return loss * (rows * process_count() / all_rows)

    def collecting(self, applied: bool) -> AbstractContextManager[Any]:
        """The context of a forward and a backward pass; gradients that are not yet applied stay in their process."""
        if applied or not isinstance(self.module, DistributedDataParallel):
            return nullcontext()
        return self.module.no_sync()


def _synchronize_batch_norm(model: BaseModel) -> None:
    if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        return
    if model.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    else:
        logging.warning(
            "batch_norm: torch synchronizes it on GPUs alone; each of the %d processes normalizes with the statistics "
            "of its own rows of a batch, and the main process's running statistics are kept",
            process_count(),
        )


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a tensor's values in all processes, in every process."""
    if not under_torchrun():
        return value
    total = value.clone()
    distributed.all_reduce(total)
    return total / process_count()


def copy_from_main(model: nn.Module, buffers_alone: bool = False) -> None:
    """Make weights and buffers, or buffers alone, those of the main process."""
    if not under_torchrun():
        return
    with torch.no_grad():
        for value in model.buffers() if buffers_alone else model.state_dict().values():
            distributed.broadcast(value.data, src=0)


def seed_apart(seed: int) -> None:
    """Make each process draw random numbers of its own (dropout); the main one goes on with its own."""
    if process_index():
        torch.manual_seed(seed * 1_000_003 + process_index())


def agreed(is_due: Any, step: int) -> bool:
    """What the main process says to a question that it is asked every STEPS_A_QUESTION steps; one process: each step.

    Args:
        is_due: the question, a function.
    """
    if not under_torchrun():
        return is_due()
    return step % STEPS_A_QUESTION == 0 and from_main(is_due)


def evaluate(model: BaseModel, rows: Any, name: str = "validation", **options: Any) -> dict[str, float]:
    """What the model's own `evaluate` gives for all rows; each process predicts a part, and all get the same values.

    Args:
        rows: a loader of FuxiCTR's form.
        name: of the rows, as progress shows it.
        options: `metrics`, as for FuxiCTR's `evaluate`.

    Raises:
        UserError: there are several processes, and the model measures in a way of its own.
    """
    verbose, model._verbose = model._verbose, 0  # our progress in place of FuxiCTR's
    try:
        if under_torchrun():
            return _evaluate_together(model, rows, **options)
        return model.evaluate(Watched(rows, name, verbose > 0, rows_of), **options)
    finally:
        model._verbose = verbose


def _evaluate_together(model: BaseModel, rows: Any, **options: Any) -> dict[str, float]:
    copy_from_main(model, buffers_alone=True)
    own, cls = OwnBatches(rows), type(model)
    measured = []

    def measure(y_true: Any, y_pred: Any, metrics: Any, group_id: Any = None) -> Any:
        measured.append(True)
        arrays = own.gathered(y_true, y_pred, group_id)
        return from_main(partial(cls.evaluate_metrics, model, arrays[0], arrays[1], metrics, arrays[2]))

    model.evaluate_metrics = measure
    try:
        values = cls.evaluate(model, own, **options)
    finally:
        del model.evaluate_metrics
    if not measured:
        refuse(model, "measures by an evaluate")
    return values


def lost_process(error: Exception) -> str | None:
    """The message where a process fails because another one is gone; None for another error."""
    if not under_torchrun() or not isinstance(error, RuntimeError) or not any(sign in str(error) for sign in LOST):
        return None
    return (
        "another process of torchrun was killed, or its connection was lost "
        f"({reason_of(error).partition('. This is')[0]}); the same command goes on from the last checkpoint"
    )
