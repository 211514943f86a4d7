"""Steps of training against FuxiCTR's `fit`, and what checkpoints cost: `python tests/bench/bench_training.py`.

DeepFM over 39 fields, D = 16, hidden units [400, 400, 400], batch 4096. Ids are drawn as in click logs: a few values
are in many rows. A process for each of the two that are compared, which make their steps in turn: ratios of neighbours in time.
"""

import argparse
import contextlib
import itertools
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from measuring import criteo_like, our_step, seconds

from fuxictr_llm.training.checkpoints import Checkpoints, random_states

ROWS, BATCHES = 4096, 4
STEPS = 5  # in a row, as in training
OURS = {
    "fused": {"optimizer_impl": "fused"},
    "rows": {"optimizer_impl": "fused", "embedding_update": "rows"},
}
GOALS = {
    (100_000, "rows"): "at most 0.35, aim 0.25",
    (100_000, "fused"): "at most 0.65, aim 0.55",
    (10_000, "fused"): "ours fastest: at most 0.85, aim 0.75",
    (10_000, "rows"): "ours fastest: at most 0.85, aim 0.75",
}


def batches(model: Any, values: int) -> Any:
    """Batches of ids of which the n-th is drawn about 1 / n times, over and over."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(BATCHES):
        # The logarithm of an id is uniform.
        ids = (values - 1) ** torch.rand(ROWS, 39, generator=generator)
        columns = {name: ids[:, index].long() for index, name in enumerate(model.feature_map.features)}
        made.append({**columns, "click": torch.randint(0, 2, (ROWS,), generator=generator).double()})
    return itertools.cycle(made)


def fuxictrs_step(values: int, **changes: Any) -> Callable[[], None]:
    """What FuxiCTR's `fit` does with a batch."""
    model = criteo_like("DeepFM", values=values, **changes).train()
    rows = batches(model, values)
    return lambda: model.train_step(next(rows)).item()


def our_loops_step(values: int, settings: dict[str, str], **changes: Any) -> Callable[[], None]:
    """What our loop does with it."""
    model = criteo_like("DeepFM", values=values, **changes)
    step, rows, losses = our_step(model, **settings), batches(model, values), torch.zeros((), dtype=torch.float64)
    return lambda: losses.add_(step(next(rows)))


def make_steps(connection: Connection, kind: str, values: int, changes: dict[str, Any]) -> None:
    """What a process does: some steps for each message, and the seconds of one as the answer."""
    step = fuxictrs_step(values, **changes) if kind == "FuxiCTR" else our_loops_step(values, OURS[kind], **changes)
    while connection.recv():
        connection.send(seconds(lambda: [step() for _ in range(STEPS)]) / STEPS)


@contextlib.contextmanager
def process(*arguments: Any) -> Iterator[Callable[[], float]]:
    """A process that makes steps; yields a function that asks it for some and returns the seconds of one."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=make_steps, args=(theirs, *arguments), daemon=True)
    worker.start()

    def ask() -> float:
        ours.send(True)
        return ours.recv()

    ask()  # the optimizer's state is made
    yield ask
    ours.send(False)
    worker.join()


def bench_steps(rounds: int, report: Callable[..., None]) -> None:
    """Each of our ways of updating against FuxiCTR's."""
    for values, regularizer in itertools.product((100_000, 10_000), (None, 1e-5)):  # 1e-5: as configs for Criteo have
        changes = {"embedding_regularizer": regularizer}
        with contextlib.ExitStack() as stack:
            steps = {kind: stack.enter_context(process(kind, values, changes)) for kind in ("FuxiCTR", *OURS)}
            times = [{kind: step() for kind, step in steps.items()} for _ in range(rounds)]
        for kind in OURS:
            ratio = statistics.median(each[kind] / each["FuxiCTR"] for each in times)
            what = f"training step, 39 x {values:,} values, {kind}" + (", regularized" if regularizer else "")
            report(f"{what} / FuxiCTR's", ratio, "", GOALS[values, kind])


def bench_checkpoint(report: Callable[..., None]) -> None:
    """The share of a run that writes a checkpoint every five minutes, with tables of 62 million weights."""
    model = criteo_like("DeepFM", values=100_000)
    our_step(model)(next(batches(model, 100_000)))
    with tempfile.TemporaryDirectory() as folder, Checkpoints(Path(folder, "a"), {}, 5) as checkpoints:
        best = Path(folder, "best.model")
        model.save_weights(str(best))

        def save() -> None:
            state = {"model": model.state_dict(), "optimizer": model.optimizer.state_dict()}
            checkpoints.save({**state, "random": random_states(model.device)}, 1, best)

        save()
        share = min(seconds(save) for _ in range(3)) / 300
    report("a checkpoint every 5 minutes, 39 x 100,000 values: share of a run", share, "", "at most 0.02, aim 0.01")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9, help="comparisons of some training steps")
    rounds = parser.parse_args().rounds
    from speed import report

    print(f"{torch.get_num_threads()} threads")
    bench_steps(rounds, report)
    bench_checkpoint(report)


if __name__ == "__main__":
    main()
