"""The command line: `python -m fuxictr_llm {run,prepare,encode}`; `run` is also `run_expid.py`."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fuxictr_llm.errors import UserError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code: 0 done, 2 something to put right, 130 interrupted."""
    try:
        args = _parser().parse_args(argv)
        args.command(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m fuxictr_llm", description=sys.modules["fuxictr_llm"].__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = _command(commands, "run", _run, "train and evaluate an experiment")
    run.add_argument("--print-config", action="store_true", help="print the resolved settings and stop")
    run.add_argument("--to", type=Path, metavar="DIR", help="with --print-config: write a FuxiCTR config directory")
    run.add_argument("--list", action="store_true", help="list backbones, methods and data sets, and stop")

    _command(commands, "prepare", _prepare, "download and build an experiment's data, and stop")
    _command(commands, "encode", _encode, "make what an experiment needs from a language model, and print where it is")
    return parser


def _command(commands, name: str, function, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(command=function)
    parser.add_argument("--config", help="config directory or YAML file (default: the packaged benchmark_configs)")
    parser.add_argument("--expid", help="{Backbone}[_{Method}]_{dataset_id}, or a label in the config")
    parser.add_argument("--gpu", type=int, default=-1, help="index of the GPU, -1 for the CPU")
    parser.add_argument("--seed", type=int, help="another seed than the config's")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting (may be given repeatedly)"
    )
    return parser


def _run(args: argparse.Namespace) -> None:
    if args.list:
        _list(args)
        return
    if args.to and not args.print_config:
        raise UserError("--to goes with --print-config")
    experiment = _experiment(args)
    if args.print_config and args.to:
        experiment.write_directory(args.to)
    elif args.print_config:
        print(experiment.to_yaml(), end="")
    else:
        from fuxictr_llm.experiment import run_experiment

        run_experiment(experiment)


def _prepare(args: argparse.Namespace) -> None:
    experiment = _experiment(args)
    from fuxictr_llm.data.build import built_data
    from fuxictr_llm.data.prepare import prepare_raw_data

    prepare_raw_data(experiment.params)
    built_data(experiment.params)
    print(Path(experiment.params["data_root"]) / experiment.params["dataset_id"])


def _encode(args: argparse.Namespace) -> None:
    experiment = _experiment(args)
    if not experiment.params["method"]:
        raise UserError(f"expid {experiment.expid!r} names no method, so it needs nothing from a language model")
    from fuxictr_llm.experiment import check_gpu, prepare_run

    check_gpu(experiment.params["gpu"])
    run = prepare_run(experiment, experiment.expid)
    print(run.params.get("field_vectors"))


def _experiment(args: argparse.Namespace):
    """The resolved experiment. `--gpu N` hides the other GPUs, so that every library finds the right one."""
    if not args.expid:
        raise UserError("--expid is missing, for example --expid DeepFM_LLaCTR_movielens100k; --list shows the parts")
    if args.gpu > 0 and "torch" not in sys.modules:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        indexes = visible.split(",") if visible else [str(index) for index in range(args.gpu + 1)]
        if args.gpu < len(indexes):
            os.environ["CUDA_VISIBLE_DEVICES"] = indexes[args.gpu]
            args.gpu = 0
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    from fuxictr_llm.config import load_experiment, parse_overrides

    return load_experiment(args.expid, args.config, seed=args.seed, overrides=parse_overrides(args.set), gpu=args.gpu)


def _list(args: argparse.Namespace) -> None:
    from fuxictr_llm.config_sources import dataset_names
    from fuxictr_llm.data.assets import ASSETS
    from fuxictr_llm.registry import backbone_names, method_names

    models = [f"{name} ({asset.licence})" for name, asset in ASSETS.items() if name not in dataset_names()]
    for title, names in (
        ("backbones", backbone_names()),
        ("methods", method_names()),
        ("data sets", dataset_names(Path(args.config) if args.config else None)),
        ("language models", [*models, "any Hugging Face id or folder"]),
    ):
        print(f"{title + ':':17}{', '.join(names)}")


if __name__ == "__main__":
    sys.exit(main())
