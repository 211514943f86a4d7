"""Reading a built data set of 39 columns: rows per second and peak memory of each `data_loader`, ray being FuxiCTR's.

Each reads in a process of its own, batches of 4096 rows in random order, and computes nothing. The first epoch counts
from before the files are opened.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
from bench_build import peak_of, settings, write_csv
from fuxictr.features import FeatureMap

from fuxictr_llm.data.build import built_data
from fuxictr_llm.data.loader import make_loaders

KINDS = ("memory", "blocks", "ray")
BATCH = 4096


def read(kind: str, folder: Path, rows: int, epochs: int) -> None:
    """In the process that is measured: the seconds of each epoch."""
    torch.set_num_threads(1)
    feature_map = FeatureMap("criteo_like", str(folder / "criteo_like"))
    feature_map.load(str(folder / "criteo_like" / "feature_map.json"), {})
    start = time.perf_counter()
    paths = {"train_data": str(folder / "criteo_like" / "train"), "data_format": "parquet", "data_loader": kind}
    loader, _ = make_loaders(feature_map, {**paths, "batch_size": BATCH, "shuffle": True}, "train")
    for _ in range(epochs):
        count = sum(len(batch["label"]) for batch in loader)
        if count != rows:
            raise SystemExit(f"{kind} read {count} of {rows} rows")
        print(time.perf_counter() - start, flush=True)
        start = time.perf_counter()
    os._exit(0)  # without the seconds that Ray needs to stop


def measured(kind: str, folder: Path, rows: int, epochs: int) -> tuple[list[float], float]:
    """Seconds of the first epoch and of the last, and peak memory in GiB."""
    printed, log = folder / f"{kind}.txt", folder / f"{kind}.log"
    command = [sys.executable, __file__, "--child", kind, "--folder", str(folder), "--rows", str(rows)]
    with printed.open("w") as output, log.open("w") as errors:
        child = subprocess.Popen([*command, "--epochs", str(epochs)], stdout=output, stderr=errors)
        peak = peak_of(child)
    if child.returncode:
        raise SystemExit(f"reading with {kind} failed: {log.read_text()[-1000:]}")
    seconds = [float(line) for line in printed.read_text().split("\n")[:-1] if line[:1].isdigit()]
    return [seconds[0], seconds[-1]], peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--block-rows", type=int, default=100_000, help="rows of a file of the built data")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--csv", type=Path, help="made there, and kept for the next time")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        read(args.child, args.folder, args.rows, args.epochs)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = args.csv or folder / "train.csv"
        if not path.is_file():
            write_csv(path, args.rows)
        built_data(settings(path, folder, 10) | {"data_block_size": args.block_rows})
        print(f"{args.rows} rows x 39 columns in files of {args.block_rows}, {psutil.cpu_count()} cores", flush=True)
        for kind in args.kinds:
            seconds, peak = measured(kind, folder, args.rows, args.epochs)
            first, last = (args.rows / each for each in seconds)
            print(f"{kind:8} {first:12,.0f} rows/s at first {last:12,.0f} later {peak:8.2f} GiB", flush=True)


if __name__ == "__main__":
    main()
