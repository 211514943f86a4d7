"""Worker processes: how they are started."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from multiprocessing import forkserver, get_context
from multiprocessing.context import BaseContext

# The third is what torch imports with its first optimizer, and takes longer than a small run.
PRELOADED = ["fuxictr_llm.leaderboard.run.worker", "fuxictr_llm.experiment.run", "torch._dynamo"]
PRELOADED += ["fuxictr_llm.leaderboard.run.loaded"]
# Every library has threads of its own; a run has as many as its `num_threads`, and they are told so before they start.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS")


def started_server() -> BaseContext:
    """The context whose processes come from a server with everything imported and one thread a library.

    The server is started at the first call, or when it is gone, and imports while the caller goes on.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # The second: asking whether there is a GPU must not start CUDA, which no forked process could use then.
    changed = {**dict.fromkeys(THREADS, "1"), "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        with _interrupts_ignored():
            forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return context


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """What is started in the block ignores Ctrl-C from the first, or it would show where in its imports it was."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
