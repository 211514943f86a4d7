"""The command line: `python -m fuxictr_llm {run,prepare,encode,export}`; `run` is also `run_expid.py`."""

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

    text = "write a trained model as a folder that serves it"
    export = commands.add_parser("export", help=text, description=text[0].upper() + text[1:] + ".")
    export.set_defaults(command=_export)
    export.add_argument(
        "--run", required=True, help="what a run's summary prints: <model_root>/<dataset_id>/<model_id>"
    )
    export.add_argument("--to", required=True, type=Path, metavar="DIR", help="the folder to write")
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
    from fuxictr_llm.experiment import prepare_run

    run = prepare_run(experiment, experiment.expid)
    print(run.params.get("field_vectors"))


def _export(args: argparse.Namespace) -> None:
    from fuxictr_llm.exporting import export_run

    print(export_run(args.run, args.to))


def _experiment(args: argparse.Namespace):
    """The resolved experiment."""
    if not args.expid:
        raise UserError("--expid is missing, for example --expid DeepFM_LLaCTR_movielens100k; --list shows the parts")
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    from fuxictr_llm.config import load_experiment, parse_overrides

    overrides = parse_overrides(args.set)
    return load_experiment(args.expid, args.config, seed=args.seed, overrides=overrides, gpu=_gpu(args.gpu))


def _gpu(index: int) -> int:
    """Hide all GPUs but the chosen one, so that every library takes that; its index among those left.

    FuxiCTR would silently take the CPU for a GPU that is not there.
    """
    if index < -1:
        raise UserError(f"--gpu {index} is neither the index of a GPU nor -1 for the CPU")
    if index == -1:
        return index
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    indexes = [str(number) for number in range(index + 1)] if visible is None else visible.split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = indexes[index] if index < len(indexes) else ""
    import torch

    if not torch.cuda.is_available():
        raise UserError(f"--gpu {index}: this machine has no such GPU that torch can use; --gpu -1 takes the CPU")
    return 0


def _list(args: argparse.Namespace) -> None:
    from fuxictr_llm.config_sources import dataset_names
    from fuxictr_llm.data.assets import ASSETS
    from fuxictr_llm.registry import backbone_names, method_names

    if args.config and not Path(args.config).exists():
        raise UserError(f"--config {args.config!r} does not exist")
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
