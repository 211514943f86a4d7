"""What a run costs beyond its own work, on this machine without Ray and on Ray: seconds a run, one run at a time.

`python tests/bench/bench_engines.py`; a run that does nothing, and the smallest real one (FM, 900 rows, one epoch) without
the seconds that its record says it took. The first run of each is left out: it waits for imports.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from conftest import write_configs

from fuxictr_llm.leaderboard.plan.plan import Plan
from fuxictr_llm.leaderboard.run.engine import Listener, run_plan
from fuxictr_llm.leaderboard.run.jobs import work
from fuxictr_llm.leaderboard.run.local import LocalExecutor
from fuxictr_llm.leaderboard.run.on_ray import RayExecutor
from fuxictr_llm.leaderboard.run.results import Results
from support_leaderboard import quick


class Clock(Listener):
    """When runs ended."""

    def __init__(self):
        self.ends = []

    def finished(self, run):
        self.ends.append(time.monotonic())


def seconds_a_run(executor, plan, folder, work) -> float:
    """From the end of the first run to that of the last one, without what runs took by their records."""
    clock, results = Clock(), Results(folder, plan)
    run_plan(results, executor=executor, work=work, listener=clock)
    own = [sum(facts["seconds"] for facts in result.record["stages"].values()) for result in results.finished()]
    own = own if work is not quick else [0.0] * len(own)
    return (clock.ends[-1] - clock.ends[0]) / (len(own) - 1) - sum(own[1:]) / (len(own) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="of each kind, on each engine")
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        os.environ["FUXICTR_LLM_CACHE"] = f"{folder}/cache"
        os.environ["PYTHONPATH"] = os.pathsep.join(map(str, Path(__file__).parents[1:3]))  # what Ray's workers import
        config = str(write_configs(Path(folder)))
        options = {"config": config, "seeds": range(1, runs + 1), "overrides": {"epochs": 1}}
        plan = Plan.crossed(["FM"], ["shop"], ["plain"], **options)
        for name, make in (("local", lambda: LocalExecutor(1)), ("Ray", lambda: RayExecutor(jobs=1))):
            start = time.monotonic()
            with make() as executor:
                print(f"{name}: {time.monotonic() - start:.2f} s to start", flush=True)
                for kind, done in (("empty", quick), ("real", work)):
                    seconds = seconds_a_run(executor, plan, f"{name}_{kind}", done)
                    print(f"{name}, {kind} runs: {seconds:.3f} s a run beyond its own", flush=True)


if __name__ == "__main__":
    main()
