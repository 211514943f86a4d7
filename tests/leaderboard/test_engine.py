"""Plans run in processes: what is skipped, what fails alone, and what a kill leaves behind."""

import argparse
import json
import multiprocessing
import os
import random
import resource
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from fuxictr_llm.__main__ import main
from fuxictr_llm.commands.places import Place, add_places, place_of
from fuxictr_llm.common import processes
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.processes import serve, start_server
from fuxictr_llm.experiment.run import run_experiment
from fuxictr_llm.leaderboard.plan.plan import Arm, Plan
from fuxictr_llm.leaderboard.run import PRELOADED_FOR_RUNS
from fuxictr_llm.leaderboard.run.engine import run_plan
from fuxictr_llm.leaderboard.run.jobs import Job, run_job
from fuxictr_llm.leaderboard.run.local import LocalExecutor
from fuxictr_llm.leaderboard.run.lock import locked_folder
from fuxictr_llm.leaderboard.run.results import Results
from support_leaderboard import (
    Heard,
    crowded,
    endless,
    full_disk,
    full_disk_of_weights,
    killed_once,
    no_data,
    quick,
    run_board,
    slow,
    tidying,
    troubled,
)


def run(plan, **options):
    results, heard = Results("board", plan), Heard()
    run_plan(results, jobs=2, listener=heard, **options)
    return results, heard.lines


def files():
    return sorted(path.name.rsplit("_s", 1)[0] + path.suffix for path in Path("board/runs/shop").glob("*/*"))


def metrics_of(results):
    return {result.key: result.metrics for result in results.finished()}


def wait_for(file):
    """Until a process has written it."""
    end = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < end, f"no {file} after a minute"
        time.sleep(0.01)


def test_real_runs_equal_those_of_the_command_run_and_are_skipped_the_next_time(plan):
    made = plan(["FM", "DeepFM"], seeds=[1])
    results, lines = run(made)
    assert lines == ["started FM plain on shop, seed 1", "started DeepFM plain on shop, seed 1"]
    assert files() == [f"{name}_shop.{kind}" for name in ("DeepFM", "FM") for kind in ("csv", "json", "log")]
    assert not Path("my_configs.csv").exists()  # that is of the command `run`
    for planned, result in zip(made.runs(), results.finished(), strict=True):
        assert result.metrics == run_experiment(planned.experiment).record["metrics"]
        assert result.record["config"]["model_root"] == "board/runs"
    again, lines = run(made)
    assert lines == [] and metrics_of(again) == metrics_of(results)


def test_what_does_not_fit_the_data_fails_alone(configs):
    arms = [Arm("LR", "shop", settings={"use_features": ["colour"]}), Arm("FM", "shop")]
    results, _ = run(Plan(arms, [1], str(configs), overrides={"epochs": 1}))
    assert [failure.arm.backbone for failure in results.failures()] == ["LR"] and len(results.finished()) == 1


def test_what_fails_is_noted_with_its_reason_and_the_others_go_on(plan):
    made = plan(seeds=[1, 2, 3])
    results, lines = run(made, work=troubled)
    reasons = {failure.seed: failure.reason for failure in results.failures()}
    assert len(lines) == 6 and [result.arm.backbone for result in results.finished()] == ["FM"] * 3
    assert reasons[1] == "ValueError: too wide"
    assert reasons[2].startswith("its process was killed by SIGKILL, as the system does when memory runs out")
    assert reasons[3] == "its process ended with exit code 3; its last words: loading 40 GB"
    assert not list(Path("board").rglob("*.tmp"))
    (note,) = Path("board").rglob("LR_shop_s1_*.failure.json")
    assert "in troubled" in json.loads(note.read_text())["traceback"]
    assert run(made, work=quick)[1] == []
    results, lines = run(made, work=quick, retry_failed=True)
    assert len(lines) == 3
    assert not results.failures()
    assert len(results.finished()) == 6
    assert not list(Path("board").rglob("*.failure.json"))


def test_jobs_spread_evenly_over_gpus_and_each_sees_one_alone(plan, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    with LocalExecutor(8, ["4", "5", "6", "7"]) as executor:
        results, _ = run(plan(["FM"], seeds=range(8)), work=crowded, executor=executor)
    seen = Counter(path.read_text() for path in Path("seen").iterdir())  # all eight at the same time
    assert seen == {"4": 2, "5": 2, "6": 2, "7": 2} and len(results.finished()) == 8


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--gpu", "0", "1", "0"], "--gpu 0 is given twice"),
        (["--gpu", "0", "-1"], "--gpu -1 is neither"),
        (["--gpu", "1", "3"], "--gpu 3: this machine has 3 GPUs; --gpu -1"),
        (["--gpu", "0", "--jobs-per-gpu", "0"], "--jobs-per-gpu 0 is less than 1"),
        (["--gpu", "0", "--jobs-per-gpu", "2", "--jobs", "2"], "--jobs and --jobs-per-gpu are two ways"),
        (["--jobs-per-gpu", "2"], "--jobs-per-gpu 2 needs --gpu"),
        (["--gpus-per-run", "1"], "--gpus-per-run 1 goes with --ray"),
        (["--ray", "--gpu", "0"], "--ray hands out the GPUs of its nodes"),
        (["--ray", "--gpus-per-run", "2"], "--gpus-per-run 2: a run takes one GPU at most"),
        (["--ray", "--cpus-per-run", "0"], "--cpus-per-run 0 must be above 0"),
    ],
)
def test_bad_places_are_a_line(args, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    with pytest.raises(UserError) as error:
        asked_place(args)
    assert str(error.value).startswith(message)


def asked_place(args):
    parser = argparse.ArgumentParser()
    add_places(parser)
    return place_of(parser.parse_args(args))


def test_gpus_are_those_that_this_process_may_see(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert asked_place(["--gpu", "2", "0", "--jobs-per-gpu", "2"]) == Place(4, ("2", "0"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,GPU-5a,3")
    place = asked_place(["--gpu", "0", "1"])
    assert (place, place.gpu) == (Place(2, ("7", "GPU-5a")), 0)
    assert asked_place(["--jobs", "3"]) == Place(3) and Place(3).gpu == -1
    assert asked_place(["--ray", "--gpus-per-run", "0.5"]) == Place(None, (), "auto", None, 0.5)


def test_without_its_data_all_runs_on_a_data_set_fail_for_one_reason(plan):
    results, lines = run(plan(), work=no_data)
    assert lines == [] and {failure.reason for failure in results.failures()} == {"RuntimeError: no network"}
    assert len(results.failures()) == 4


def test_a_full_disk_is_a_line_and_no_runs_fault(plan):
    with pytest.raises(
        UserError, match=r"FM plain on shop, seed [12]: OSError: .*No space left on device; what was fin"
    ):
        run(plan(), work=full_disk)
    assert Results("board").failures() == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
@pytest.mark.parametrize("seed", [1, 2])  # few weights and a million: torch says something else each time
def test_a_disk_that_is_full_for_weights_is_a_line_too(plan, seed):
    with pytest.raises(UserError, match=rf"FM plain on shop, seed {seed}: RuntimeError: .*; what was finished is kept"):
        run(plan(seeds=[seed]), work=full_disk_of_weights)
    assert Results("board").failures() == []


def test_runs_of_a_comparison_are_kept_in_a_folder_and_its_plan_is_too(plan):
    run(plan(["FM"], seeds=[1]), work=quick)
    results, _ = run(plan(["FM"], seeds=[2]), work=quick, save_plan=False)
    assert len(results.finished()) == 1 and Results("board").plan.seeds == [1]


def test_a_process_that_is_done_may_tidy_up(plan):
    run(plan(["FM"], seeds=[1]), work=tidying)
    assert len(list(Path("board").rglob("*.tidied"))) == 2


def test_the_server_ignores_interrupts_has_one_thread_a_library_and_is_looked_after(plan, monkeypatch):
    seen, before = [], signal.getsignal(signal.SIGINT)

    def ensure_running():
        seen.append((signal.getsignal(signal.SIGINT), os.environ["POLARS_MAX_THREADS"]))
        ensure()

    ensure = processes.forkserver.ensure_running
    monkeypatch.setattr(processes.forkserver, "ensure_running", ensure_running)
    run(plan(["FM"], seeds=[1]), work=quick)
    assert seen == [(signal.SIG_IGN, "1")] * 2 and signal.getsignal(signal.SIGINT) is before


def test_killed_at_any_moment_and_started_again_it_equals_an_uninterrupted_one(plan, tmp_path):
    made = plan(seeds=[1, 2, 3])
    Path("plan.yaml").write_text(made.to_yaml(), encoding="utf-8")
    draw = random.Random(5)
    clean = multiprocessing.get_context("fork")  # the killed process is a young one, which may fork
    for _ in range(4):
        Path("board/.lock.json").unlink(missing_ok=True)  # of the one that was killed
        parent = start_server(PRELOADED_FOR_RUNS).Process(target=_in, args=(tmp_path, "plan.yaml", clean))
        parent.start()
        wait_for(Path("board/.lock.json"))
        time.sleep(0.3 * draw.random())
        parent.kill()
        parent.join(300)
    results, _ = run(made, work=slow)
    other = Results("other", made)
    run_plan(other, work=quick)
    assert metrics_of(results) == metrics_of(other) and len(metrics_of(other)) == 6
    assert sum(1 for _ in Path("board").rglob("*.run.json")) == 6 and results.ignored == []


def _in(folder, plan, context):
    os.chdir(folder)
    run_board(plan, context, slow, jobs=2)


def test_a_process_dies_with_its_parent(plan):
    results, context = Results("board", plan(["FM"], seeds=[1])), start_server(PRELOADED_FOR_RUNS)
    ours, theirs = context.Pipe()
    job = Job(results.plan.runs()[0].experiment, Path("board/out"), False, False)
    process = context.Process(target=serve, args=(theirs, str(Path.cwd()), dict(os.environ), run_job, (job, endless)))
    process.start()
    theirs.close()
    wait_for(Path("board/out"))
    process.join(0.2)
    assert process.is_alive()
    ours.close()  # what the death of a parent does
    process.join(10)
    assert process.exitcode == -signal.SIGKILL


def test_a_folder_in_use_says_by_whom(plan):
    made = plan(["FM"], seeds=[1])
    with locked_folder(Path("board")), pytest.raises(UserError) as error:
        run(made, work=quick)
    assert str(error.value).startswith(f"'board' is in use by process {os.getpid()} on ") and "since 2" in str(
        error.value
    )
    with locked_folder(Path("board")), pytest.raises(UserError, match="in use by another process; wait"):
        Path("board/.lock.json").write_text('["damaged"]')
        run(made, work=quick)
    assert len(run(made, work=quick)[0].finished()) == 1


def test_a_disk_that_is_full_for_the_note_on_a_lock_leaves_the_lock():
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # writing anything fails as on a full disk
    try:
        with locked_folder(Path("board")), pytest.raises(UserError, match="'board' is in use by another process"):
            locked_folder(Path("board")).__enter__()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    with locked_folder(Path("board")):
        assert Path("board/.lock.json").exists()


def test_the_command_runs_lists_and_writes_tables(configs, plan, capsys):
    args = ["leaderboard", "--backbones", "FM", "--datasets", "shop", "--seeds", "2", "--config", str(configs)]
    args += ["--set", "epochs=1", "--out", "board"]
    assert main([*args, "--dry-run"]) == 0
    assert "2 runs to do" in capsys.readouterr().out and not Path("board").exists()
    run(plan(["FM"], seeds=[1]), work=quick)
    assert main([*args, "--jobs", "1"]) == 0
    shown = capsys.readouterr().out
    assert "FM plain on shop, seed 2: test AUC" in shown and "2 of 2 runs done; left: nothing" in shown
    assert {"table.md", "table.csv", "table.tex", "table.html", "plan.yaml"} <= {
        path.name for path in Path("board").iterdir()
    }
    assert main(["leaderboard", "--from", "board/plan.yaml", "--dry-run"]) == 0
    assert "0 runs to do, " in (shown := capsys.readouterr().out) and shown.endswith("in board\n")
    Results("board", plan(["FM"], seeds=[1, 2, 3])).note_failure(plan(["FM"], seeds=[3]).runs()[0], "too wide")
    args[args.index("2")] = "3"
    assert main([*args, "--dry-run"]) == 0
    assert "failed: FM plain on shop, seed 3: too wide" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        main(args)
    assert ended.value.code == 1 and "1 of 3 runs failed; --retry-failed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--from", "p.yaml", "--seeds", "3"], "--seeds is part of the plan that --from names"),
        (
            ["--backbones", "FM", "--datasets", "movielens100k", "--seeds", "3", "--seed", "1"],
            "--seeds and --seed are two ways",
        ),
        (["--backbones", "FM"], "the plan names no data set"),
        (["--backbones", "FM", "--datasets", "movielens100k", "--seeds", "0"], "--seeds 0 is no number of seeds"),
        (["--from", "absent.yaml"], "cannot read 'absent.yaml'"),
        (["--jobs", "0"], "--jobs 0 is less than 1"),
    ],
)
def test_bad_options_are_a_line(args, message, capsys):
    assert main(["leaderboard", "--dry-run", *args]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1


def test_a_run_that_was_killed_in_its_training_goes_on(plan):
    made = plan(["FM"], seeds=[1], checkpoint_minutes=0, epochs=2)
    whole, _ = run(made)
    Path("board").rename("whole")
    killed, _ = run(made, work=killed_once)
    (failure,) = killed.failures()
    assert failure.reason.startswith("its process was killed by SIGKILL")
    resumed, _ = run(made, work=killed_once, retry_failed=True)
    assert metrics_of(resumed) == metrics_of(whole)
    (log,) = Path("board/runs/shop").glob("*/*.log")
    assert "Training goes on from epoch 1, batch 7 of 8" in log.read_text(encoding="utf-8")
    assert not [*Path("board/runs/shop").glob("*/*.checkpoint")]
