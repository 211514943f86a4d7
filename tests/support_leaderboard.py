"""Work for a leaderboard's processes that takes no time: records of made-up runs, failures, kills."""

import os
import signal
import time
from multiprocessing.util import Finalize
from pathlib import Path

import torch

from fuxictr_llm.common.files import digest_of_file, own_folder, write_json
from fuxictr_llm.common.run_files import RECORD, run_files
from fuxictr_llm.common.runs import versions
from fuxictr_llm.experiment.record import source_digests
from fuxictr_llm.leaderboard.plan.arms import run_key
from fuxictr_llm.leaderboard.plan.plan import Plan
from fuxictr_llm.leaderboard.run.engine import Listener, run_plan
from fuxictr_llm.leaderboard.run.jobs import work
from fuxictr_llm.leaderboard.run.local import LocalExecutor
from fuxictr_llm.leaderboard.run.pruning import METRIC, Watcher
from fuxictr_llm.leaderboard.run.results import Results
from fuxictr_llm.training.listener import Evaluation


def made_up_record(experiment, **changes):
    """What the run record of an experiment on `shop` would be; its AUC follows from its seed and its settings."""
    params = experiment.params
    auc = 0.5 + int(run_key(params)[:4], 16) / 2**18
    metrics = {"AUC": auc, "logloss": 0.6}
    stages = {"train": {"seconds": 2.0, "rows": 900, "epochs": 1}, "test": {"seconds": 0.5, "rows": 150}}
    if params["method"]:
        stages = {
            "tune": {"seconds": 7.0} if params["seed"] == 1 else {"cached": True, "seconds": 0.0, "made_in": 7.0},
            **stages,
        }
    splits = [split for split in ("train", "valid", "test") if params[f"{split}_data"]]
    digests = {split: [digest_of_file(params[f"{split}_data"])] for split in splits}
    return {
        "model_id": experiment.expid,
        "config": params,
        "config_sha256": experiment.sha256,
        "sources": source_digests(params),
        "seed": params["seed"],
        "labels": ["click"],
        "metrics": {"valid": metrics, "test": metrics},
        "slices": None,
        "stages": stages,
        "parameters": {"backbone": 10, "method": 0},
        "data": {"dataset_id": "shop", "rows": {"train": 900}, "sha256": digests},
        "versions": versions(),
        **changes,
    }


def write_record(experiment, **changes):
    """The file that a run leaves."""
    params = experiment.params
    files = run_files(Path(params["model_root"]) / params["dataset_id"], experiment.expid)
    files.parent.mkdir(parents=True, exist_ok=True)
    write_json(f"{files}{RECORD}", made_up_record(experiment, **changes))


def quick(job):
    """A run in no time."""
    if not job.data_only:
        write_record(job.experiment)


def hopeless(job):
    """A run of three epochs, far from a learning rate of .02 a bad one, which may be pruned."""
    if job.data_only:
        return
    best = 0.8 - abs(job.experiment.params["learning_rate"] - 0.02)
    evaluations = [Evaluation(number, 0.5, {METRIC: best - 0.1 / number}, 1e-3) for number in (1, 2, 3)]
    watcher = None if job.others is None else Watcher(job.others)
    for evaluation in evaluations if watcher else ():
        watcher.evaluated(evaluation)
    record = {"metrics": {"valid": {METRIC: best}, "test": {}}}
    write_record(job.experiment, **record, evaluations=[evaluation._asdict() for evaluation in evaluations])


def slow(job):
    """A run that may be killed half way."""
    time.sleep(0.02 if job.data_only else 0.1)
    quick(job)
    time.sleep(0.02)


def killed_once(job):
    """A real run that is killed in the middle of its training, and the next time is not."""
    from fuxictr_llm.training.step import TrainingStep

    mark = job.output.with_name("was killed")
    if not job.data_only and not mark.exists():
        mark.touch()
        step, last = TrainingStep.__call__, 6

        def kill_at_last(self, batch, index):
            if index == last:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, batch, index)

        TrainingStep.__call__ = kill_at_last
    work(job)


def endless(job):
    """A run that nobody waits for."""
    time.sleep(60)


def troubled(job):
    """LR fails in different ways, by seed; FM does not."""
    if job.experiment.params["model"] == "LR" and not job.data_only:
        seed = job.experiment.params["seed"]
        if seed == 1:
            raise ValueError("too wide\nand more")
        with own_folder(job.output):
            print("loading 40 GB", flush=True)
            os.kill(os.getpid(), signal.SIGKILL) if seed == 2 else os._exit(3)
    quick(job)


def no_data(job):
    """The data set cannot be made."""
    raise RuntimeError("no network")


def full_disk(job):
    """FM finds the disk full."""
    if job.experiment.params["model"] == "FM" and not job.data_only:
        raise OSError(28, "No space left on device")
    quick(job)


def full_disk_of_weights(job):
    """FM's weights find the disk full, which torch says in words of its own."""
    if job.experiment.params["model"] == "FM" and not job.data_only:
        torch.save({"weight": torch.zeros(job.experiment.params["seed"] ** 20)}, "/dev/full")
    quick(job)


def tidying(job):
    """A run that tidies up when it is done, as temporary files are."""
    quick(job)
    Finalize(None, _tidied, args=(job.output.with_suffix(".tidied"),), exitpriority=1)


def _tidied(path):
    time.sleep(0.2)
    path.touch()


def crowded(job):
    """A run that notes which GPUs it sees, and waits for seven others."""
    if not job.data_only:
        here = Path("seen")
        here.mkdir(exist_ok=True)
        (here / job.experiment.expid).write_text(os.environ["CUDA_VISIBLE_DEVICES"])
        end = time.monotonic() + 60
        while len(list(here.iterdir())) < 8 and time.monotonic() < end:
            time.sleep(0.02)
    quick(job)


class Heard(Listener):
    """Keeps what it hears."""

    def __init__(self):
        self.lines = []

    def started(self, run):
        self.lines.append(f"started {run}")

    def pruned(self, run, reason):
        self.lines.append(reason)


def run_board(plan, context, work, jobs):
    """A leaderboard in a process of its own, which a test may kill."""
    with LocalExecutor(jobs, context=context) as executor:
        run_plan(Results("board", Plan.read(plan)), executor=executor, work=work)
