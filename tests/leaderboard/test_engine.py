"""Plans run in processes: what is skipped, what fails alone, and what a kill leaves behind."""

import time

from fuxictr_llm.leaderboard.engine import run_plan
from fuxictr_llm.leaderboard.results import Results


def test_a_plan_is_run(plan):
    t = time.time()
    results = Results("board", plan())
    run_plan(results, jobs=2)
    print(time.time() - t, results.ignored)
    for result in results.finished():
        print(result.arm, result.seed, result.metrics, result.seconds, result.rows)
    print(results.failures())
    t = time.time()
    results = Results("board2", plan())
    run_plan(results, jobs=2)
    print(time.time() - t)
    import subprocess

    print(subprocess.run(["find", "board"], capture_output=True, text=True).stdout)
    assert 0
