"""An exported DeepFM against FuxiCTR's `predict`, from ids and from raw rows: `python tests/bench/bench_serving.py`.

39 fields x 10,000 values, D = 16, hidden units [400, 400, 400]; batches of 1, 100 and 10,000 rows; torch, ONNX and
torch.export. All of it in one process with one thread.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}  # before the libraries read them

import numpy as np
import onnxruntime
import polars as pl
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from measuring import criteo_like, in_turn
from raw_tables import column, settings

from fuxictr_llm.serving.export import export_run
from fuxictr_llm.serving.load import load_model
from fuxictr_llm.serving.raw import RawRows
from fuxictr_llm.serving.rows import row_in_words
from support import params, save_run
from support_serving import raw_rows_of

FIELDS, VALUES = 39, 10_000
SIZES = (1, 100, 10_000)
CALLS = {1: 200, 100: 100, 10_000: 1}  # in a row, as one measurement
PREPROCESSED = 100_000  # rows, as many as `predict` takes at once
Batch = dict[str, torch.Tensor]
Way = Callable[[Batch], Any]  # of predicting


def raw_rows(folder: Path) -> tuple[RawRows, pl.DataFrame]:
    """What makes ids of raw rows of 39 columns, built of a row for each value; and the rows, of which all are texts."""
    draw = np.random.default_rng(0)
    columns = {f"f{index}": draw.permutation(VALUES).astype(str) for index in range(FIELDS)}
    rows = pl.DataFrame({"click": np.arange(VALUES) % 2, **columns})
    tables = {"train": rows, "valid": rows.head(2), "test": rows.head(2)}
    made, _ = raw_rows_of(settings(folder, [column(name, "categorical") for name in columns], tables))
    return made, rows.drop("click")


def ways_of(folder: Path, model: Any) -> dict[str, Way]:
    """Name -> a function of a batch that predicts with the exported model, FuxiCTR's own first."""
    served, options = load_model(folder), onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    module = torch.export.load(folder / "model.pt2").module()
    inputs = served.fields

    def of_pt2(batch: Batch) -> Any:
        with torch.inference_mode():
            return module({name: batch[name] for name in inputs})["click"].numpy()

    return {
        "FuxiCTR": lambda batch: model.predict([batch]),
        "torch": served.predict,
        "onnx": lambda batch: session.run(None, {name: batch[name].numpy() for name in inputs})[0],
        "pt2": of_pt2,
    }


def cpu_seconds(call: Callable[[], Any]) -> float:
    """Of all threads: what others do on the machine hardly changes it."""
    start = time.process_time()
    call()
    return time.process_time() - start


def repeated(call: Callable[[], Any], calls: int) -> Callable[[], Any]:
    return lambda: [call() for _ in range(calls)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="how often each pair is measured")
    parser.add_argument("--calls", type=float, default=1, help="share of the calls that a measurement makes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    from speed import report

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        raw, rows = raw_rows(Path(folder) / "raw")

        def ids_of(part: pl.DataFrame) -> Batch:
            return {name: torch.as_tensor(ids) for name, ids in raw(part, row_in_words)[0].items()}

        def from_raw(way: Way, part: pl.DataFrame) -> Any:
            return way(ids_of(part))

        model = criteo_like("DeepFM", values=VALUES + 2).eval()  # and the ids of padding and of unseen values
        shape = {"embedding_dim": 16, "hidden_units": [400, 400, 400], "batch_norm": False, "net_dropout": 0.0}
        save_run(model, {"model": "DeepFM", **params("DeepFM", **shape)})
        ways = ways_of(export_run("runs/a", Path(folder) / "served", ["onnx", "pt2"]), model)
        baseline = ways.pop("FuxiCTR")
        for size in SIZES:
            part, calls = rows.head(size), max(int(CALLS[size] * args.calls), 1)
            batch = ids_of(part)
            for name, way in ways.items():
                assert np.abs(way(batch) - baseline(batch)).max() <= 1e-6
                for start, predict in (("ids", partial(way, batch)), ("raw rows", partial(from_raw, way, part))):
                    ratio = in_turn(repeated(predict, calls), repeated(partial(baseline, batch), calls), args.rounds)
                    goal = "at most 1" if start == "ids" else "-"
                    report(f"{name}, {size:,} rows from {start} / FuxiCTR's predict from ids", ratio, "", goal)
        many = pl.concat([rows] * (PREPROCESSED // VALUES))
        took = statistics.median(cpu_seconds(lambda: raw(many, row_in_words)) for _ in range(max(args.rounds // 3, 1)))
        report("raw rows x 39 columns to ids, in a second of a core", PREPROCESSED / took / 1000, "k", "at least 200")


if __name__ == "__main__":
    main()
