"""Building a data set of 39 columns from csv: rows per second and peak memory, of ours and of FuxiCTR's build_dataset.

Each builds in a process of its own, whose memory is watched, with that of the processes that it starts: what they
have allocated, without the pages of mapped files, which the system takes back when it needs them.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil

PART = 100_000
NUMBERS = [f"I{index}" for index in range(1, 14)]
HASHES = [f"C{index}" for index in range(1, 27)]
MOST = (20, 100, 1000, 10_000, 100_000, 1_000_000)  # distinct values of a hashed column


def write_csv(path: Path, rows: int) -> None:
    """Counts and hashes with holes, as Criteo's."""
    draw = np.random.default_rng(0)
    with path.open("wb") as file:
        for start in range(0, rows, PART):
            count = min(PART, rows - start)
            columns: dict[str, Any] = {"label": draw.integers(0, 2, count)}
            for name in NUMBERS:
                columns[name] = _holes(draw, draw.lognormal(3, 2, count).astype(np.int64).tolist(), 0.2)
            for index, name in enumerate(HASHES):
                values = np.minimum(draw.pareto(0.7, count) * 5, MOST[index % len(MOST)]).astype(np.int64)
                columns[name] = _holes(draw, [f"{x:08x}" for x in values * 2654435761 % 2**32], 0.1)
            pl.DataFrame(columns).write_csv(file, include_header=start == 0)


def _holes(draw: np.random.Generator, values: list[Any], share: float) -> list[Any]:
    holes = (draw.random(len(values)) < share).tolist()
    return [None if hole else value for hole, value in zip(holes, values, strict=True)]


def settings(path: Path, folder: Path, least: int) -> dict[str, Any]:
    numbers = {"name": NUMBERS, "active": True, "dtype": "float", "type": "numeric", "normalizer": "StandardScaler"}
    hashes = {"name": HASHES, "active": True, "dtype": "str", "type": "categorical"}
    return {
        "data_root": str(folder),
        "dataset_id": "criteo_like",
        "data_format": "csv",
        "rebuild_dataset": True,
        "train_data": str(path),
        "feature_cols": [{**numbers, "fill_na": 0}, hashes],
        "label_col": {"name": "label", "dtype": "float"},
        "min_categr_count": least,
    }


def build(whose: str, params: dict[str, Any]) -> None:
    """In the process that is measured."""
    if whose == "ours":
        from fuxictr_llm.data.build import built_data

        built_data(params)
    else:
        from fuxictr.preprocess import FeatureProcessor, build_dataset

        build_dataset(FeatureProcessor(**params), **params)


def measured(whose: str, path: Path, least: int) -> tuple[float, float]:
    """Seconds, the imports apart, and peak memory in GiB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", whose, "--csv", str(path), "--least", str(least)]
        printed = Path(folder, "printed")
        with printed.open("w") as output:
            child = subprocess.Popen([*command, "--folder", folder], stdout=output)
            peak = peak_of(child)
        if child.returncode:
            raise SystemExit(f"the build of {whose} failed")
        return float(printed.read_text().split()[-1]), peak


def peak_of(child: subprocess.Popen[str]) -> float:
    """GiB that a process and those that it starts have allocated at most, until it ends."""
    return max(_memory(child), default=0) / 2**30


def _memory(child: subprocess.Popen[str]) -> Iterator[int]:
    """Bytes in use, again and again until the process ends; memory that several share counts once."""
    while child.poll() is None:
        processes = []
        try:
            parent = psutil.Process(child.pid)
            processes = [parent, *parent.children(recursive=True)]
        except psutil.Error:
            pass  # it has just ended
        known = [found for process in processes if (found := _status(process.pid))]
        yield sum(own for own, _ in known) + max((shared for _, shared in known), default=0)
        time.sleep(0.05)


def _status(pid: int) -> tuple[int, int] | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss")}
    return found.get("RssAnon", 0), found.get("RssShmem", 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--least", type=int, default=10, help="min_categr_count")
    parser.add_argument("--whose", nargs="+", default=["ours", "FuxiCTR"], choices=["ours", "FuxiCTR"])
    parser.add_argument("--csv", type=Path, help="made there, and kept for the next time")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        import fuxictr_llm.data.build  # noqa: F401 - imports are not measured

        params, start = settings(args.csv, args.folder, args.least), time.perf_counter()
        build(args.child, params)
        print(f"\n{time.perf_counter() - start}", flush=True)
        os._exit(0)  # without the seconds that Ray needs to stop
    with tempfile.TemporaryDirectory() as folder:
        path = args.csv or Path(folder) / "train.csv"
        if not path.is_file():
            write_csv(path, args.rows)
        print(f"{args.rows} rows x 39 columns, {path.stat().st_size / 2**20:.0f} MiB of csv", flush=True)
        rates = {}
        for whose in args.whose:
            seconds, peak = measured(whose, path, args.least)
            rates[whose] = args.rows / seconds
            print(f"{whose:8} {rates[whose]:10,.0f} rows/s {seconds:8.1f} s {peak:8.2f} GiB", flush=True)
    if len(rates) == 2:
        print(f"rows per second, ours / FuxiCTR {rates['ours'] / rates['FuxiCTR']:8.2f}   (goal: > 4)")


if __name__ == "__main__":
    main()
