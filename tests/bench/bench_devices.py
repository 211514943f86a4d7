"""Two CPU processes with a thread each against one process with two threads: a training step of DeepFM.

`torchrun --standalone --nproc_per_node 2 tests/bench/bench_devices.py`; the second process waits while the first one
trains alone, so that neighbours in time are compared.
"""

import os
import statistics
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from measuring import criteo_like, seconds

from fuxictr_llm.common.processes import gathered, is_main, process_count, process_index, process_state
from fuxictr_llm.data.shares import share_of
from fuxictr_llm.host.batches import some_rows, synthetic_batch
from fuxictr_llm.training.devices import keep_freed_memory
from fuxictr_llm.training.optimizers import configure_optimizer
from fuxictr_llm.training.step import TrainingStep

ROWS, ROUNDS = 4096, int(os.environ.get("ROUNDS", "15"))


@contextmanager
def one_process():
    with patch.dict(os.environ, {"WORLD_SIZE": "1"}):
        yield


def model():
    made = criteo_like("DeepFM")
    configure_optimizer(made, {})
    return made


def main() -> None:
    process_state()
    keep_freed_memory(torch.device("cpu"))
    whole = synthetic_batch(criteo_like("DeepFM").feature_map, rows=ROWS)
    share = some_rows(whole, share_of(ROWS, process_index(), process_count()))
    together = TrainingStep(model(), {})
    with one_process():
        alone = TrainingStep(model(), {})
    for step in (together, alone):
        step.model.train()
    ratios = []
    for index in range(ROUNDS + 2):
        torch.set_num_threads(1)
        gathered(0)
        several = seconds(lambda: together(share, 0))
        gathered(0)
        torch.set_num_threads(2)
        if is_main():
            with one_process():
                one = seconds(lambda: alone(whole, 0))
            if index >= 2:
                ratios.append(several / one)
                print(f"  two processes {several:.3f} s, one {one:.3f} s", flush=True)
        gathered(0)
    if is_main():
        name = f"training step of DeepFM, batch {ROWS}: 2 processes / 1 process with 2 threads"
        print(f"{name:70}{statistics.median(ratios):8.3f}     (goal: at most 1.15, aim 1.0)", flush=True)


if __name__ == "__main__":
    main()
