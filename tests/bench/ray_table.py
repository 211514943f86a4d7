"""A table on a Ray cluster of two nodes, one of which is killed on the way, and so is the command, which then goes on.

`python tests/bench/ray_table.py` runs 24 runs so, and the same plan on this machine without Ray; it says what was killed
when, and compares the two tables and the records digit for digit, but for seconds. Exit code 1: they differ.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from board_on_ray import SETTINGS
from conftest import write_configs
from ray.cluster_utils import Cluster

from fuxictr_llm.leaderboard.plan.plan import Plan

TESTS, BACKBONES = Path(__file__).parents[1], ["FM", "LR", "DeepFM"]
COMPARED = ("metrics", "evaluations", "best_epoch", "slices", "weights_sha256", "parameters", "seed", "data", "sources")
PATIENCE = 3600.0  # seconds


def leaderboard(folder, *options) -> subprocess.Popen:
    command = [sys.executable, "-m", "fuxictr_llm", "leaderboard", "--from", "plan.yaml", "--out", folder, *options]
    return subprocess.Popen(command)


def records(folder) -> dict[str, dict]:
    """Of the runs that are done, by the names of their files."""
    return {path.name: json.loads(path.read_text()) for path in Path(folder, "runs").glob("*/*/*.run.json")}


def wait_for(count, process) -> None:
    """Until so many runs are done."""
    end = time.monotonic() + PATIENCE
    while len(records("on_ray")) < count:
        assert process.poll() is None, f"the command ended with {process.poll()}"
        assert time.monotonic() < end, f"no {count} runs after {PATIENCE:.0f} s"
        time.sleep(0.2)


def run_on_ray(runs) -> None:
    """Kill a node when a quarter is done, the command when half is; the same command goes on."""
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": SETTINGS}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    node = cluster.add_node(num_cpus=1)
    options = ("--ray", cluster.address)
    process = leaderboard("on_ray", *options)
    wait_for(max(runs // 4, 1), process)
    print(f"-- {len(records('on_ray'))} runs done: a node is killed", flush=True)
    cluster.remove_node(node, allow_graceful=False)
    wait_for(runs // 2, process)
    process.kill()
    process.wait()
    print(f"-- {len(records('on_ray'))} runs done: the command is killed, and started again", flush=True)
    assert leaderboard("on_ray", *options).wait() == 0
    cluster.shutdown()


def table(folder) -> list[dict[str, str]]:
    with Path(folder, "table.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    timed = ("seconds", "inference_ratio")
    return [{name: value for name, value in line.items() if not name.endswith(timed)} for line in lines]


def differences() -> list[str]:
    near, far = records("local"), records("on_ray")
    found = [f"{name} is in one of them alone" for name in near.keys() ^ far.keys()]
    for name in sorted(near.keys() & far.keys()):
        found += [f"{name}: {key}" for key in COMPARED if near[name].get(key) != far[name].get(key)]
    return found + ([] if table("local") == table("on_ray") else ["the tables differ"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--runs", type=int, default=24, help="a multiple of the backbones: 3 x seeds; below 6: LR alone"
    )
    parser.add_argument("--epochs", type=int, default=3)
    args = parser.parse_args()
    backbones = BACKBONES if args.runs >= 6 else ["LR"]
    seeds = range(1, args.runs // len(backbones) + 1)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["FUXICTR_LLM_CACHE"] = f"{folder}/cache"
        os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS)])
        config = str(write_configs(Path(folder)))
        options = {"config": config, "seeds": seeds, "overrides": {"epochs": args.epochs}}
        plan = Plan.crossed(backbones, ["shop"], ["plain"], **options)
        Path("plan.yaml").write_text(plan.to_yaml(), encoding="utf-8")
        start = time.monotonic()
        run_on_ray(len(plan.runs()))
        middle = time.monotonic()
        assert leaderboard("local", "--jobs", "2").wait() == 0
        print(f"-- on Ray {middle - start:.0f} s, with two kills; local {time.monotonic() - middle:.0f} s")
        found = differences()
        print(*found, f"-- {len(plan.runs())} runs: {'they differ' if found else 'equal, digit for digit'}", sep="\n")
        raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
