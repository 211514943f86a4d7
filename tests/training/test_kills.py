"""Whole runs that are killed at random moments of their training, and go on: `KILLS=20 python -m pytest ...`.

The system's alarm clock ends the process as SIGKILL does: within a step, an evaluation, or the writing of a checkpoint.
"""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from fuxictr_llm.common.files import read_json
from fuxictr_llm.common.processes import Lost, Pool
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.leaderboard.run import PRELOADED_FOR_RUNS

KILLS = int(os.environ.get("KILLS") or 2)
HISTORY = {
    "din_target_field": ["color"],
    "din_sequence_field": ["tags"],
    "feature_specs": [{"name": "tags", "feature_encoder": None}],
}
CASES = {
    "plain": ("DeepFM_shop", {}),
    "LLaCTR": ("DeepFM_LLaCTR_shop", {}),
    "ELEC, staged": ("DeepFM_ELEC_shop", {}),
    "ELEC, joint": ("DeepFM_ELEC_shop", {"schedule": "joint", "warmup_epochs": 1}),
    "DIN": ("DIN_shop", HISTORY),
    "MMoE": ("MMoE_shop", {}),
}
# It trains three networks. The others are tried by hand, and their training is interrupted in test_resume.py as well.
ALWAYS = ("ELEC, joint",)
TRAINING = {"epochs": 3, "batch_size": 90, "early_stop_patience": 4, "checkpoint_minutes": 0, "num_threads": 1}


def run_until(seconds, expid, configs, settings, folder):
    """Run an experiment; the process ends that long after the start of its first training."""
    from fuxictr_llm.experiment import run
    from fuxictr_llm.training import networks

    def fit_until(*args, **options):
        if seconds is not None and not signal.getitimer(signal.ITIMER_REAL)[0]:
            signal.setitimer(signal.ITIMER_REAL, seconds)
        return loop_fit(*args, **options)

    loop_fit, run.fit = run.fit, fit_until
    networks.fit = fit_until
    Path(folder).mkdir(exist_ok=True)
    os.chdir(folder)
    os.environ["FUXICTR_LLM_CACHE"] = str(Path(folder, "cache"))
    start = time.monotonic()
    run.run_experiment(load_experiment(expid, configs, overrides=settings))
    return time.monotonic() - start


def in_a_process(*arguments):
    """What `run_until` returns in a process of its own, or how that was lost."""
    with Pool(1, PRELOADED_FOR_RUNS, time_limit=300) as pool:
        pool.start("run", run_until, *arguments)
        while True:
            for _, result in pool.wait():
                return result


@pytest.mark.parametrize("case", ALWAYS if KILLS == 2 else CASES)
def test_killed_at_random_moments_a_run_ends_as_if_it_were_not(case, configs, llm, tiny_settings, tmp_path):
    words = tmp_path / "words.yaml"
    words.write_text(
        words.read_text() + "entities: {user: {id: user, text: [city]}, item: {id: color, text: [tags]}}\n"
    )
    expid, changes = CASES[case]
    settings = {**TRAINING, "model_root": "runs", **changes}
    settings |= tiny_settings if "LLaCTR" in expid else {**llm, "h_hidden": 8, "h_dim": 4} if "ELEC" in expid else {}
    arguments = (expid, configs, settings)
    assert not isinstance(in_a_process(None, *arguments, tmp_path / "whole"), Lost)
    if (vectors := tmp_path / "whole" / "cache" / "text_vectors").exists():  # no process is killed before its training
        shutil.copytree(vectors, tmp_path / "parts" / "cache" / "text_vectors")
    draw, seconds, killed = random.Random(case), 0.5, 0
    while killed < KILLS:
        result = in_a_process(draw.uniform(0.02, seconds), *arguments, tmp_path / "parts")
        if isinstance(result, Lost):
            assert result.killed_by == "SIGALRM", result
            killed += 1
        else:  # done before the alarm: once more, and ended earlier
            seconds /= 2
            assert_same_runs(tmp_path)
            for path in (tmp_path / "parts" / "runs" / "shop").iterdir():
                path.unlink()
    assert not isinstance(in_a_process(None, *arguments, tmp_path / "parts"), Lost)
    assert_same_runs(tmp_path)


def assert_same_runs(folder):
    names = [sorted(path.name for path in (folder / part / "runs" / "shop").iterdir()) for part in ("whole", "parts")]
    assert names[0] == names[1]
    whole, parts = (next((folder / part / "runs" / "shop").glob("*/*.run.json")) for part in ("whole", "parts"))
    whole, parts = ({**read_json(path), "path": path} for path in (whole, parts))
    for key in ("metrics", "best_epoch", "evaluations"):
        assert parts[key] == whole[key], key
    for name, network in whole["networks"].items():
        assert parts["networks"][name]["metrics"] == network["metrics"], name
    expected, state = (
        torch.load(str(record["path"]).replace(".run.json", ".model"), weights_only=True) for record in (whole, parts)
    )
    for key, value in expected.items():
        assert torch.equal(state[key], value), key
