"""The command line: `python -m fuxictr_llm {run,prepare,encode}`; `run` is also `run_expid.py`."""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fuxictr_llm.errors import UserError
from fuxictr_llm.semantics import distributed


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

    prepare = _command(
        commands, "prepare", _prepare, "get, check and build the data of a data set or experiment, and stop"
    )
    prepare.add_argument("name", nargs="?", metavar="NAME", help="a data set; or give --expid")
    prepare.add_argument("--raw", type=Path, metavar="DIR", help="the folder with its original files")

    text = "make what an experiment needs from a language model, and print where it is"
    encode = _command(commands, "encode", _encode, text)
    encode.add_argument("--values", nargs="+", metavar="COLUMN", help="vectors of the values of these columns instead")
    encode.add_argument("--format", choices=("npz", "h5"), help="with --values: kind of file (default: npz)")
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
    if bool(args.name) == bool(args.expid):
        raise UserError("prepare needs a data set's name or --expid, one of the two; run --list shows what there is")
    if args.raw and not args.raw.is_dir():
        raise UserError(f"--raw {str(args.raw)!r} is no folder")
    args.expid = args.expid or f"DeepFM_{args.name}"  # any backbone: the data set's keys are what counts
    experiment = _experiment(args, forced={"raw_data": str(args.raw)} if args.raw else {})
    params = experiment.params
    if args.raw and not params.get("prepare"):
        _take_published(params, args.raw)
        return
    from fuxictr_llm.data.build import built_data
    from fuxictr_llm.data.prepare import prepare_raw_data

    prepare_raw_data(params)
    built_data(params)
    print(Path(params["data_root"]) / params["dataset_id"])


def _take_published(params: dict, folder: Path) -> None:
    from fuxictr_llm.data.published import published_files, take_published

    if not published_files(params):
        raise UserError(f"data set {params['dataset_id']!r} has neither prepare: nor md5: keys; leave out --raw")
    checked = take_published(params, folder)
    width = max(len(row["file"]) for row in checked)
    print(f"{'file':{width}}  {'rows':>12}  md5")
    for row in checked:
        rows = "" if row["rows"] is None else f"{row['rows']:,}"
        print(
            f"{row['file']:{width}}  {rows:>12}  {'as published' if params['md5'][row['file']] else 'none published'}"
        )
    print(f"checked, and linked to where data set {params['dataset_id']!r} reads them; its first run builds it")


def _encode(args: argparse.Namespace) -> None:
    if args.values:
        _encode_values(args)
        return
    if args.format:
        raise UserError("--format goes with --values")
    experiment = _experiment(args)
    from fuxictr_llm.experiment import prepare_run
    from fuxictr_llm.semantics.value_config import asks_for_vectors

    if not experiment.params["method"] and not asks_for_vectors(experiment.params):
        raise UserError(
            f"expid {experiment.expid!r} names no method and no column has pretrained_emb: llm, so it needs nothing "
            "from a language model; --values COLUMN makes vectors of a column's values"
        )
    run = prepare_run(experiment, experiment.expid)
    _print_files(run)


def _encode_values(args: argparse.Namespace) -> None:
    """Vectors as the language model gives them, unless `--set` has them reduced or scaled."""
    asked = {
        "feature_specs": [{"name": args.values, "pretrained_emb": "llm"}],
        "value_dim": "full",
        "value_scale": None,
    }
    experiment = _experiment(args, asked)
    from fuxictr_llm.experiment import prepare_data
    from fuxictr_llm.semantics.value_config import value_config
    from fuxictr_llm.semantics.value_vectors import make_value_vectors

    # It was there to make the keys known; whether the columns exist is asked below, by the name of the option.
    experiment = replace(experiment, params={**experiment.params, "feature_specs": None})
    run = prepare_data(experiment, experiment.expid)
    make_value_vectors(value_config(run.params), run, args.values, args.format or "npz")
    _print_files(run)


def _print_files(run) -> None:
    if not distributed.is_first():
        return
    files = [run.notes.get("field_vectors", {}), *run.notes.get("value_vectors", {}).get("columns", {}).values()]
    for path in dict.fromkeys(file["path"] for file in files if file):
        print(path)


def _experiment(args: argparse.Namespace, defaults: dict | None = None, forced: dict | None = None):
    """The resolved experiment; `forced` wins over `--set`, which wins over `defaults`, which win over the config."""
    if not args.expid:
        raise UserError("--expid is missing, for example --expid DeepFM_LLaCTR_movielens100k; --list shows the parts")
    level = logging.INFO if distributed.is_first() else logging.ERROR
    logging.basicConfig(level=level, format="%(levelname)s %(message)s")
    from fuxictr_llm.config import load_experiment, parse_overrides

    overrides = {**(defaults or {}), **parse_overrides(args.set), **(forced or {})}
    return load_experiment(args.expid, args.config, seed=args.seed, overrides=overrides, gpu=_gpu(args.gpu))


def _gpu(index: int) -> int:
    """Hide all GPUs but the chosen one, so that every library takes that; its index among those left.

    FuxiCTR would silently take the CPU for a GPU that is not there. Under torchrun each process takes its own.
    """
    if index < -1:
        raise UserError(f"--gpu {index} is neither the index of a GPU nor -1 for the CPU")
    if index == -1:
        return index
    index_left = 0
    if distributed.world_size() > 1:
        index = index_left = distributed.local_index()
    else:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        indexes = [str(number) for number in range(index + 1)] if visible is None else visible.split(",")
        os.environ["CUDA_VISIBLE_DEVICES"] = indexes[index] if index < len(indexes) else ""
    import torch

    if index_left >= torch.cuda.device_count():
        raise UserError(f"--gpu {index}: this machine has no such GPU that torch can use; --gpu -1 takes the CPU")
    return index_left


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
