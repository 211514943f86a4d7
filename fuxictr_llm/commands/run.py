"""`run`: train and evaluate an experiment, print its settings, or list what there is."""

import argparse
from pathlib import Path

from fuxictr_llm.commands import Commands, add_command, experiment_of
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.host.checkout import use_checkout


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(commands, "run", execute, "train and evaluate an experiment")
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings and stop")
    parser.add_argument("--to", type=Path, metavar="DIR", help="with --print-config: write a FuxiCTR config directory")
    parser.add_argument("--fresh", action="store_true", help="train anew, not from an interrupted run's checkpoint")
    parser.add_argument("--dry-run", action="store_true", help="print what the run would use, and stop")
    parser.add_argument("--list", action="store_true", help="list backbones, methods and data sets, and stop")


def execute(args: argparse.Namespace) -> None:
    """Do what the options say."""
    if args.list:
        _list(args)
        return
    if args.to and not args.print_config:
        raise UserError("--to goes with --print-config")
    if args.dry_run and args.print_config:
        raise UserError("--dry-run and --print-config: give one of them")
    experiment = experiment_of(args)
    if args.print_config and args.to:
        experiment.write_directory(args.to)
    elif args.print_config:
        print(experiment.to_yaml(), end="")
    elif args.dry_run:
        from fuxictr_llm.commands.needs import needs_of

        print(*needs_of(experiment), sep="\n")
    else:
        from fuxictr_llm.experiment.run import run_experiment

        run_experiment(experiment, fresh=args.fresh)


def _list(args: argparse.Namespace) -> None:
    from fuxictr_llm.config.names import names_in
    from fuxictr_llm.config.sources import dataset_names
    from fuxictr_llm.data.assets import ASSETS

    use_checkout(args.zoo)
    known = names_in(args.config)
    own = {name for name in known.labels if name not in names_in(None).labels}
    of_parts = bool(known.backbones)  # FuxiCTR's form knows whole expids alone
    models = [f"{name} ({asset.licence})" for name, asset in ASSETS.items() if name not in dataset_names()]
    for title, names in (
        ("backbones", known.backbones),
        ("methods", known.methods),
        ("data sets", dataset_names(Path(args.config) if args.config else None) if of_parts else []),
        ("expids" if not of_parts else "more expids", sorted(own)),
        ("language models", [*models, "any Hugging Face id or folder"]),
    ):
        if names:
            print(f"{title + ':':17}{', '.join(names)}")
