"""Where a leaderboard's runs are done: cores or GPUs of this machine, or a Ray cluster."""

import argparse
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fuxictr_llm.commands import Options, chosen_gpus, default_jobs
from fuxictr_llm.common.errors import UserError

if TYPE_CHECKING:
    from fuxictr_llm.leaderboard.run.executor import Executor


@dataclass(frozen=True)
class Place:
    """What the options of `add_places` say.

    Attributes:
        jobs: at most so many runs at the same time; None, with `ray` alone: as many as the cluster has room for.
        devices: the GPUs of this machine, as `CUDA_VISIBLE_DEVICES` names them.
        ray: the address of a cluster, or `auto`; None: this machine without Ray.
        cpus, gpus: of a run, with `ray`.
    """

    jobs: int | None
    devices: tuple[str, ...] = ()
    ray: str | None = None
    cpus: float | None = None
    gpus: float = 0.0

    @property
    def gpu(self) -> int:
        """The GPU's index for a plan: a run's process sees one alone, or none."""
        return 0 if self.devices or self.gpus else -1

    def executor(self) -> "AbstractContextManager[Executor]":
        """Does the runs there."""
        if self.ray is None:
            from fuxictr_llm.leaderboard.run.local import LocalExecutor

            return LocalExecutor(self.jobs or 1, self.devices)
        from fuxictr_llm.leaderboard.run.on_ray import RayExecutor

        return RayExecutor(self.ray, self.cpus, self.gpus, self.jobs)

    def __str__(self) -> str:
        if self.ray is not None:
            cpus = "a CPU for each thread" if self.cpus is None else f"{self.cpus:g} CPUs"
            most = f", at most {self.jobs} at the same time" if self.jobs else ""
            return f"Ray at {self.ray}, {cpus} and {self.gpus:g} GPUs a run{most}"
        on = f"GPU {', '.join(self.devices)}" if self.devices else "the CPU"
        return f"{on} of this machine, {self.jobs} at the same time"


def add_places(options: Options, jobs: int | None = None) -> None:
    """The options that `place_of` reads; `jobs` is the default of `--jobs`."""
    default = "one a core, at most 8; on GPUs one each" if jobs is None else str(jobs)
    options.add_argument("--jobs", type=int, metavar="N", help=f"runs at the same time (default: {default})")
    text = "index of the GPU, -1 for the CPU; several: the runs spread over them, and each sees one alone"
    options.add_argument("--gpu", type=int, nargs="+", default=[-1], metavar="N", help=text)
    options.add_argument("--jobs-per-gpu", type=int, metavar="K", help="runs that share a GPU (default: 1)")
    text = "run on Ray: ADDRESS of a cluster, as 10.0.0.1:6379, or auto (default): the one here, which is started"
    options.add_argument("--ray", nargs="?", const="auto", metavar="ADDRESS", help=text)
    text = "with --ray: CPUs that a run takes (default: its num_threads)"
    options.add_argument("--cpus-per-run", type=float, metavar="C", help=text)
    text = "with --ray: GPUs that a run takes, at most 1; 0.5: two share one (default: 0)"
    options.add_argument("--gpus-per-run", type=float, metavar="G", help=text)


def place_of(args: argparse.Namespace, jobs: int | None = None) -> Place:
    """What the options say; `jobs` is the default of `--jobs` without a GPU.

    Raises:
        UserError: they do not fit together, or there is no such GPU.
    """
    for name in ("jobs", "jobs_per_gpu"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value} is less than 1")
    if args.ray is not None:
        return _on_ray(args)
    for option, value in (("--cpus-per-run", args.cpus_per_run), ("--gpus-per-run", args.gpus_per_run)):
        if value is not None:
            raise UserError(f"{option} {value:g} goes with --ray; without it give --jobs, and --jobs-per-gpu")
    devices = chosen_gpus(args.gpu)
    if args.jobs_per_gpu is not None and not devices:
        raise UserError(f"--jobs-per-gpu {args.jobs_per_gpu} needs --gpu N, or several")
    if args.jobs_per_gpu is not None and args.jobs is not None:
        raise UserError("--jobs and --jobs-per-gpu are two ways to say the same; give one of them")
    if devices:
        return Place(args.jobs or len(devices) * (args.jobs_per_gpu or 1), tuple(devices))
    return Place(args.jobs or jobs or default_jobs())


def _on_ray(args: argparse.Namespace) -> Place:
    if args.gpu != [-1] or args.jobs_per_gpu is not None:
        raise UserError("--ray hands out the GPUs of its nodes: give --gpus-per-run, not --gpu or --jobs-per-gpu")
    if args.cpus_per_run is not None and not 0 < args.cpus_per_run < float("inf"):
        raise UserError(f"--cpus-per-run {args.cpus_per_run:g} must be above 0")
    gpus = args.gpus_per_run or 0.0
    if not 0 <= gpus <= 1:
        raise UserError(f"--gpus-per-run {gpus:g}: a run takes one GPU at most; give a number from 0 to 1")
    return Place(args.jobs, (), args.ray, args.cpus_per_run, gpus)
