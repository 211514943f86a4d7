"""A leaderboard's jobs on Ray: what is told before it starts, what comes back, and a table equal to the local one."""

import json
import os
import socket
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.files import cache_dir
from fuxictr_llm.common.runs import versions
from fuxictr_llm.experiment.record import typed_command
from fuxictr_llm.leaderboard.plan.queue import Queue
from fuxictr_llm.leaderboard.run import cluster, node, on_ray
from fuxictr_llm.leaderboard.run.cluster import check_facts, connect
from fuxictr_llm.leaderboard.run.engine import run_plan
from fuxictr_llm.leaderboard.run.forms import record_problem
from fuxictr_llm.leaderboard.run.jobs import CODE, DONE, FAILED, Job, Outcome, outcome_of, write_files
from fuxictr_llm.leaderboard.run.node import Answer, Order, do_job, entries, pack, unpack
from fuxictr_llm.leaderboard.run.on_ray import RayExecutor
from fuxictr_llm.leaderboard.run.results import Results
from runs_here import run_here
from support_leaderboard import no_data, quick

TESTS = Path(__file__).parent.parent


def test_an_address_that_nobody_answers_is_a_line_within_seconds(monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=f"--ray {address}: nobody answers there"):
            connect(address)
    for address in ("ray://10.0.0.1:10001", "10.0.0.1", "10.0.0.1:x"):
        with pytest.raises(UserError, match="give auto, or HOST:PORT of the cluster's head"):
            connect(address)


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"-ERR\r\n", b"", None])
def test_an_address_where_something_else_answers_is_a_line(said, monkeypatch):
    """None: it says nothing."""
    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr(cluster, "SECONDS_TO_ANSWER", 10.0 if said is not None else 0.2)

    def serve(server):
        with server.accept()[0] as connection:
            while said is None and connection.recv(100):
                pass
            connection.sendall(said or b"")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve, args=(server,), daemon=True)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(UserError, match=f"--ray {address}: what answers there is no Ray; give its head"):
            connect(address)
        thread.join(60)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"error": "No module named 'fuxictr_llm'"}, "cannot import fuxictr_llm: No module"),
        ({"versions": {**versions(), "torch": "1.0"}}, "has torch 1.0, not "),
        ({"versions": {**versions(), "fuxictr-llm": "0.0"}}, "has fuxictr-llm 0.0, not "),
        ({"code": "other"}, "has other code of fuxictr-llm"),
    ],
)
def test_a_node_with_another_package_is_a_line(changes, message):
    same = {"versions": versions(), "code": CODE, "uses_cache": True}
    check_facts("10.0.0.2", same)
    with pytest.raises(UserError) as error:
        check_facts("10.0.0.2", {**same, **changes})
    assert str(error.value).startswith(f"the Ray node 10.0.0.2 {message}") and "\n" not in str(error.value)
    assert cluster._probe().__qualname__ != cluster._probe().__name__  # sent as it is, for a node without the package


def test_a_node_with_a_cache_of_its_own_is_told_from_one_that_uses_this_machines(tmp_path, monkeypatch):
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "locks").mkdir(parents=True)
    (here / "locks" / "ray-1").touch()
    monkeypatch.setenv("FUXICTR_LLM_CACHE", str(there))  # of the node
    facts = cluster._probe()
    assert not facts("ray-1", None, ())["uses_cache"]  # though it could see the file
    assert facts("ray-1", str(here), ())["uses_cache"]  # its jobs get the variable of this machine
    monkeypatch.setenv("FUXICTR_LLM_CACHE", str(here))
    assert facts("ray-1", None, ())["uses_cache"]


def order_of(plan, **changes):
    (run,) = plan(["FM"], seeds=[1]).runs()
    params = {**run.experiment.params, "model_root": "board/runs", "verbose": 0}
    experiment = replace(run.experiment, expid=run.name, params=params, changed=False, config_name=f"board/{run.name}")
    job = Job(experiment, Path(f"board/runs/shop/{run.name}/{run.name}.out"), False, False)
    return replace(Order(job, quick, str(Path.cwd()), node.variables(), ships=True), **changes)


@pytest.fixture
def in_this_process(monkeypatch):
    """A node does its jobs in the test's own process."""

    def do(job, work):
        try:
            work(job)
            return Outcome(DONE)
        except Exception as error:
            return outcome_of(error)

    monkeypatch.setattr(node, "_in_a_process", do)


def test_a_nodes_files_come_back_and_the_record_is_as_if_the_run_had_been_here(plan, in_this_process):
    order = order_of(plan)
    answer, _ = do_job(order)
    assert answer.outcome.kind == DONE and not Path("board").exists()
    assert answer.files.keys() == {".run.json"} and not [*(cache_dir() / "ray_runs").iterdir()]
    write_files(order.job, answer.files)
    (record,) = Path("board/runs/shop").glob("*/*")
    record = json.loads(record.read_text())
    assert record["config"] == order.job.experiment.params and record["command"] == typed_command()
    assert not record_problem(record)


def test_a_node_without_the_data_or_the_folder_says_so(plan, in_this_process):
    answer, _ = do_job(order_of(plan, work=no_data))
    assert (answer.outcome.kind, answer.outcome.reason) == (FAILED, "RuntimeError: no network")
    answer, _ = do_job(order_of(plan, folder="/nowhere"))
    assert "has no folder '/nowhere'; share the folder" in answer.outcome.reason


def test_what_a_job_adds_to_a_cache_is_sent_to_others_whole(plan, in_this_process, monkeypatch, tmp_path):
    def encoding(job):
        entry = cache_dir() / "field_vectors" / "0123456789abcdef"
        entry.mkdir(parents=True, exist_ok=True)
        (entry / "vectors.safetensors").write_bytes(b"\0\1")
        (entry / "manifest.json").write_text("{}")
        quick(job)

    answer, made = do_job(order_of(plan, work=encoding))
    assert [*answer.made] == [*made] == ["field_vectors/0123456789abcdef"]
    assert do_job(order_of(plan, work=encoding))[1] == {}  # it was there
    assert do_job(order_of(plan, work=encoding, ships=False))[0].made == []
    monkeypatch.setenv("FUXICTR_LLM_CACHE", str(tmp_path / "other node"))
    unpack(made)
    assert [*entries()] == [*made] and pack(entries()) == made


def test_without_a_common_cache_runs_wait_for_the_one_that_asks_the_language_model(plan):
    runs = [replace(run, language_model="asked") for run in plan(seeds=[1, 2]).runs()]
    for patient, count in ((False, 4), (True, 1)):
        queue, taken = Queue(runs, [], patient), []
        while run := queue.take(lambda run: True):
            taken.append(run)
        assert len(taken) == count
    queue.ended(taken[0], well=True)
    assert queue.take(lambda run: True) is not None


class PretendedRay:
    """Two nodes, `a` and `b`, whose data sets are made, and runs whose workers fail, as the test says."""

    exceptions, util = ray.exceptions, ray.util

    def __init__(self, failures):
        self.failures, self.sent = failures, []

    def remote(self, function):
        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=partial(self.send, options)))

    def send(self, options, order, known):
        self.sent.append((options, order))
        return len(self.sent) - 1, None

    def wait(self, references, num_returns, timeout):
        return list(references), []

    def get(self, reference):
        options, order = self.sent[reference]
        strategy = options.get("scheduling_strategy")
        if error := self.failures.get(strategy.node_id if strategy else "run"):
            raise error
        quick(order.job)
        return Answer(Outcome(DONE), {})


def run_pretended(plan, monkeypatch, **failures):
    nodes = [{"NodeID": name * 56, "NodeManagerAddress": "10.0.0.1", "Resources": {"CPU": 2.0}} for name in "ab"]
    monkeypatch.setattr(on_ray, "live_nodes", lambda: nodes)
    executor, results = RayExecutor("10.0.0.1:6379"), Results("board", plan(["FM"], seeds=[1, 2]))
    executor.ray = PretendedRay({name * 56 if len(name) == 1 else name: error for name, error in failures.items()})
    run_plan(results, executor=executor)
    return results, executor.ray


LOST = ray.exceptions.NodeDiedError("10.0.0.7 went\ndown")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ray.exceptions.OutOfMemoryError("Task was killed"), "Ray's memory monitor killed it, as its node ran out of"),
        (ray.exceptions.WorkerCrashedError(), "Ray lost its worker 4 times: The worker died unexpectedly"),
        (LOST, "Ray lost its worker 4 times: "),
        (ray.exceptions.RayTaskError("do_job", "", ImportError("no fuxictr_llm")), "ImportError: no fuxictr_llm"),
    ],
)
def test_what_ray_lost_or_killed_is_a_failed_run_that_says_so(error, reason, plan, monkeypatch):
    results, pretended = run_pretended(plan, monkeypatch, run=error)
    failures = results.failures()
    assert len(failures) == 2 and all(failure.reason.startswith(reason) for failure in failures)
    assert not any("\n" in failure.reason for failure in failures)
    assert [options["max_retries"] for options, _ in pretended.sent] == [3] * 4  # two nodes' data, two runs
    assert [options["num_cpus"] for options, _ in pretended.sent] == [0, 0, 1, 1]


def test_a_node_that_is_lost_while_it_prepares_is_not_waited_for(plan, monkeypatch):
    results, _ = run_pretended(plan, monkeypatch, a=LOST)
    assert len(results.finished()) == 2
    with pytest.raises(UserError, match=r"node 10.0.0.1 \(bbbbbb\) cannot have the data set 'shop': OSError: no raw"):
        run_pretended(
            partial(plan, batch_size=64), monkeypatch, b=ray.exceptions.RayTaskError("", "", OSError("no raw"))
        )


@pytest.mark.xdist_group("ray")  # not beside the other tests of Ray
def test_a_cluster_that_loses_a_node_makes_the_local_engines_table_digit_for_digit(plan, tmp_path):
    made = plan(["FM", "LR"], seeds=[1, 2])
    Path("plan.yaml").write_text(made.to_yaml(), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, str(TESTS / "board_on_ray.py"), "plan.yaml", "board"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=570, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    lines = ended.stdout.splitlines()  # Ray adds the log of the node that was killed
    assert any(line.endswith("no node has 1 CPUs and 0.5 GPUs, as a run takes") for line in lines)
    assert [line for line in lines if " slots, " in line] == ["2 slots, one cache: True", "1 slots, 4 runs"]
    local, far = run_here("local")(made).finished(), Results("board").finished()
    assert [(run.key, run.metrics) for run in far] == [(run.key, run.metrics) for run in local]
    assert all(run.record["config"]["model_root"] == "board/runs" for run in far)
    assert sum(1 for _ in Path("board/runs/shop").glob("*/*.log")) == 4
