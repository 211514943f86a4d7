"""The commands of `fuxictr-llm`, one a file: `add` declares its options, `execute` does the work.

Here is what they share: options that several have, and the experiment that these name.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.processes import process_state, under_torchrun
from fuxictr_llm.common.run_files import find_run
from fuxictr_llm.host.checkout import use_checkout

if TYPE_CHECKING:  # importing it takes a second, which --help need not wait for
    from fuxictr_llm.config.resolve import Experiment
    from fuxictr_llm.serving.load import ServedModel

AFFECTS_RESULTS = False  # see common/code_digest.py
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"
SCRIPT = "fuxictr-llm"  # what setup.py installs


class Commands(Protocol):
    """The subparsers of argparse, whose own type is private."""

    def add_parser(self, name: str, *, help: str, description: str) -> argparse.ArgumentParser: ...


class Options(Protocol):
    """A parser, or a group of its options, whose own type is private."""

    def add_argument(self, *names: str, **details: Any) -> Any: ...


def program() -> str:
    """The words that start this program: those that were typed, `fuxictr-llm` or `python -m fuxictr_llm`."""
    return SCRIPT if Path(sys.argv[0]).stem == SCRIPT else "python -m fuxictr_llm"


def new_command(
    commands: Commands, name: str, function: Callable[[argparse.Namespace], None], text: str
) -> argparse.ArgumentParser:
    """A command that `function` carries out; `text` says what it does."""
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(command=function)
    if name == "run" and Path(sys.argv[0]).name == "run_expid.py":
        parser.prog = "python run_expid.py"
    return parser


def add_command(
    commands: Commands, name: str, function: Callable[[argparse.Namespace], None], text: str
) -> argparse.ArgumentParser:
    """A command as `new_command` makes it, with the options that choose an experiment (see `experiment_of`)."""
    parser = new_command(commands, name, function, text)
    text = "config directory or YAML file (default: the packaged benchmark_configs)"
    parser.add_argument("--config", metavar="DIR|FILE", help=text)
    text = "the experiment: {Backbone}[_{Method}]_{dataset_id}, or a label in the config"
    parser.add_argument("--expid", metavar="EXPID", help=text)
    parser.add_argument("--gpu", type=int, default=-1, metavar="N", help="index of the GPU, -1 for the CPU (default)")
    parser.add_argument("--seed", type=int, metavar="N", help="another seed than the config's")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting (may be given repeatedly)"
    )
    add_zoo(parser)
    return parser


def add_zoo(parser: Options) -> None:
    """The option `--zoo`; a command calls `use_checkout(args.zoo)` before it asks for a backbone."""
    text = "a FuxiCTR checkout or its model_zoo: its models win over ours (default: the variable FUXICTR_ZOO)"
    parser.add_argument("--zoo", metavar="DIR", help=text)


def add_served_model(parser: Options) -> None:
    """The options that choose a trained model for raw rows; see `served_model_of`."""
    text = "an exported folder, or a run: <model_root>/<dataset_id>/<model_id>"
    parser.add_argument("--model", required=True, metavar="DIR|RUN", help=text)
    parser.add_argument("--gpu", type=int, default=-1, help="index of the GPU, -1 for the CPU")
    text = "the class that preprocessed the data set, where it is not FuxiCTR's own"
    parser.add_argument("--processor", metavar="FILE.py:CLASS", help=text)
    add_zoo(parser)


@contextmanager
def served_model_of(args: argparse.Namespace) -> Iterator["ServedModel"]:
    """The model that the options choose, for the block; it predicts with as many threads as the run did."""
    use_checkout(args.zoo)
    if not (Path(args.model) / "config.json").is_file():  # no export
        find_run(args.model)  # what is misspelt is said before torch is imported
    gpu = chosen_gpu(args.gpu)
    import torch

    from fuxictr_llm.registry import import_class
    from fuxictr_llm.serving.predict import served_model

    processor = None
    if args.processor:
        from fuxictr_llm.host.preprocess import FeatureProcessor

        processor = import_class(args.processor, "--processor", FeatureProcessor)
    with served_model(args.model, gpu, feature_processor=processor) as served:
        threads = (served.config.get("evaluation") or {}).get("num_threads")
        if threads:  # the last digits may depend on it
            torch.set_num_threads(threads)
        yield served


def add_methods(parser: argparse.ArgumentParser) -> None:
    """The option `--method`; a command calls `methods_of(args)` for all methods there are."""
    text = "try this method too: file.py:Class or package.module:Class (may be given repeatedly)"
    parser.add_argument("--method", action="append", default=[], metavar="FILE.py:CLASS", help=text)


def methods_of(args: argparse.Namespace) -> list[str]:
    """The names of all methods, those of `--method` among them."""
    from fuxictr_llm.registry import find_method, method_names

    for name in args.method:
        find_method(name, where="--method")
    return method_names()


def experiment_of(
    args: argparse.Namespace, defaults: Mapping[str, Any] | None = None, forced: Mapping[str, Any] | None = None
) -> "Experiment":
    """The resolved experiment; `forced` wins over `--set`, which wins over `defaults`, which win over the config."""
    if not args.expid:
        raise UserError("--expid is missing, for example --expid DeepFM_LLaCTR_movielens100k; --list shows the parts")
    is_main = not under_torchrun() or process_state(args.gpu).is_main_process
    logging.basicConfig(level=logging.INFO if is_main else logging.ERROR, format="%(levelname)s %(message)s")
    use_checkout(args.zoo)
    from fuxictr_llm.config.sources import read_source

    source = read_source(args.expid, args.config)  # what is misspelt there is said before torch is imported
    from fuxictr_llm.config.resolve import parse_overrides, resolved

    overrides = {**(defaults or {}), **parse_overrides(args.set), **(forced or {})}
    return resolved(source, args.config, seed=args.seed, overrides=overrides, gpu=chosen_gpu(args.gpu))


def default_jobs() -> int:
    """How many processes work at the same time where nothing is said: one a core, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, cores)


def chosen_gpus(indexes: Sequence[int]) -> list[str]:
    """The GPUs of `--gpu 0 1 2`, as `CUDA_VISIBLE_DEVICES` names them; none for -1, the CPU.

    This process goes on seeing all of them.

    Raises:
        UserError: one is given twice, or torch cannot use one.
    """
    if list(indexes) == [-1]:
        return []
    for place, index in enumerate(indexes):
        if index < 0:
            raise UserError(f"--gpu {index} is neither the index of a GPU nor, given alone, -1 for the CPU")
        if index in indexes[:place]:
            raise UserError(f"--gpu {index} is given twice; --jobs-per-gpu has several runs share a GPU")
    if under_torchrun():
        raise UserError("a leaderboard spreads its runs over GPUs itself; start it without torchrun")
    from fuxictr_llm.common.checks import check_gpu

    for index in indexes:
        check_gpu(index)
    names = _gpu_names(1 + max(indexes))
    return [names[index] for index in indexes]


def chosen_gpu(index: int) -> int:
    """Hide all GPUs but the chosen one, so that every library takes that; its index among those left.

    FuxiCTR would silently take the CPU for a GPU that is not there. Under torchrun each process takes its own.
    """
    if index < -1:
        raise UserError(f"--gpu {index} is neither the index of a GPU nor -1 for the CPU")
    if index == -1:
        return index
    from fuxictr_llm.common.checks import check_gpu

    if under_torchrun():
        index = process_state(index).local_process_index
        check_gpu(index)
        return index
    visible, names = os.environ.get(VISIBLE_GPUS), _gpu_names(1 + index)
    os.environ[VISIBLE_GPUS] = names[index] if index < len(names) else ""
    import torch

    if torch.cuda.device_count():
        return 0
    os.environ.pop(VISIBLE_GPUS) if visible is None else os.environ.update({VISIBLE_GPUS: visible})
    check_gpu(index)  # says how many there are
    return index


def _gpu_names(count: int) -> list[str]:
    """What `CUDA_VISIBLE_DEVICES` calls the GPUs that this process sees; without it, the first `count`."""
    visible = os.environ.get(VISIBLE_GPUS)
    names = map(str, range(count)) if visible is None else visible.split(",")
    return [name.strip() for name in names]
