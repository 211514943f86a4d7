"""How a leaderboard's processes are started: by a server that has imported everything once. Imports nothing heavy."""

import os
from multiprocessing import forkserver, get_context
from multiprocessing.context import BaseContext

# The last is what torch imports with its first optimizer, and takes longer than a small run.
PRELOADED = ["fuxictr_llm.leaderboard.worker", "fuxictr_llm.experiment", "torch._dynamo"]
# Every library has threads of its own; a run has as many as its `num_threads`, and they are told so before they start.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS", "RAYON_NUM_THREADS")


def started_server() -> BaseContext:
    """The context whose processes come from a server with everything imported and one thread a library.

    The server is started at the first call, and imports while the caller goes on.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # The second: asking whether there is a GPU must not start CUDA, which no forked process could use then.
    changed = {**dict.fromkeys(THREADS, "1"), "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    try:
        forkserver.ensure_running()
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
    return context
