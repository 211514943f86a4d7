"""Probabilities of ids, with torch, ONNX and torch.export, against FuxiCTR's `predict`: `python tests/bench/bench_serving.py`.

DeepFM over 39 fields x 10,000 values, D = 16, hidden units [400, 400, 400]; batches of 1, 100 and 10,000 rows. All of it
in one process with one thread.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from measuring import criteo_like, in_turn

from fuxictr_llm.host.batches import synthetic_batch
from fuxictr_llm.serving.export import export_run
from fuxictr_llm.serving.load import load_model
from support import params, save_run

SIZES = (1, 100, 10_000)
CALLS = {1: 200, 100: 100, 10_000: 1}  # in a row, as one measurement


def ways_of(folder: Path, model: Any) -> dict[str, Any]:
    """Name -> a function of a batch that predicts with the exported model, FuxiCTR's own first."""
    served, options = load_model(folder), onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    module = torch.export.load(folder / "model.pt2").module()
    inputs = served.fields

    def of_pt2(batch: dict[str, torch.Tensor]) -> Any:
        with torch.inference_mode():
            return module({name: batch[name] for name in inputs})["click"].numpy()

    return {
        "FuxiCTR": lambda batch: model.predict([batch]),
        "torch": served.predict,
        "onnx": lambda batch: session.run(None, {name: batch[name].numpy() for name in inputs})[0],
        "pt2": of_pt2,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="how often each pair is measured")
    args = parser.parse_args()
    torch.set_num_threads(1)
    from speed import report

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        model = criteo_like("DeepFM").eval()
        settings = {"embedding_dim": 16, "hidden_units": [400, 400, 400], "batch_norm": False}
        save_run(model, {"model": "DeepFM", **params("DeepFM", **settings)})
        ways = ways_of(export_run("runs/a", Path(folder) / "served", ["onnx", "pt2"]), model)
        baseline = ways.pop("FuxiCTR")
        for size in SIZES:
            batch, calls = synthetic_batch(model.feature_map, size), CALLS[size]
            for name, way in ways.items():
                assert np.abs(way(batch) - baseline(batch)).max() <= 1e-6
                ratio = in_turn(
                    lambda: [way(batch) for _ in range(calls)],  # noqa: B023
                    lambda: [baseline(batch) for _ in range(calls)],  # noqa: B023
                    args.rounds,
                )
                report(f"{name}, {size:,} rows from ids / FuxiCTR's predict", ratio, "", "at most 1")


if __name__ == "__main__":
    main()
