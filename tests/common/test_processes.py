"""The pool of processes: what comes back from one that ends well, fails, is killed, hangs, or loses its parent."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from fuxictr_llm.common.processes import Lost, Pool, start_server


def results(pool):
    """All that comes back, by task."""
    found = {}
    while len(pool):
        found |= dict(pool.wait())
    return found


def test_what_ends_gives_back_its_result_or_says_why_there_is_none():
    with Pool(jobs=2, time_limit=1.0) as pool:
        waiting = {
            "large": (bytes, 10**7),
            "leaves": (os._exit, 3),
            "fails": (int, "x"),
            "killed": (signal.raise_signal, signal.SIGKILL),
            "hangs": (time.sleep, 60),
            "interrupted": (signal.raise_signal, signal.SIGINT),
        }
        found = {}
        while waiting or len(pool):
            while waiting and pool.has_room:
                task, (function, argument) = waiting.popitem()
                pool.start(task, function, argument)
            assert len(pool) <= 2
            found |= dict(pool.wait())
    assert found == {
        "large": bytes(10**7),
        "leaves": Lost("its process ended with exit code 3"),
        "fails": Lost("its process ended with exit code 1"),
        "killed": Lost("its process was killed by SIGKILL", "SIGKILL"),
        "hangs": Lost("not done after 1 s"),
        "interrupted": None,  # the process ignores Ctrl-C
    }


def test_a_process_works_in_the_folder_and_environment_of_its_parent(tmp_path, monkeypatch):
    start_server([])  # it has others
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("A_SETTING", "here")
    with Pool(jobs=3) as pool:
        pool.start("folder", os.getcwd)
        pool.start("setting", os.getenv, "A_SETTING")
        pool.start("threads", os.getenv, "OMP_NUM_THREADS", threads=7)
        assert results(pool) == {"folder": str(tmp_path), "setting": "here", "threads": "7"}


def test_who_leaves_the_pool_leaves_no_process():
    with pytest.raises(KeyboardInterrupt), Pool(jobs=1) as pool:
        pool.start("endless", time.sleep, 60)
        (worker,) = pool._workers
        raise KeyboardInterrupt
    assert worker.process.exitcode == -signal.SIGKILL


def test_no_process_outlives_its_parent():
    code = """
        import os, time
        from pathlib import Path
        from fuxictr_llm.common.processes import Pool

        with Pool(jobs=1) as pool:
            pool.start("endless", time.sleep, 60)
            while not pool._workers[0].since < float("inf"):
                pool.wait()
            print(pool._workers[0].process.pid, flush=True)
            pool.wait()
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)
    try:
        child = psutil.Process(int(parent.stdout.readline()))
    finally:
        parent.kill()
        parent.communicate(timeout=30)
    child.wait(timeout=30)  # raises where it lives on
    assert not child.is_running()


def test_nothing_to_wait_for_is_nothing():
    with Pool(jobs=1) as pool:
        assert pool.has_room
        assert len(pool) == 0
        assert pool.wait() == []
