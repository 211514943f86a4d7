"""`encode`: what an experiment needs from a language model, or vectors of a column's values."""

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

from fuxictr_llm.commands import Commands, add_command, experiment_of
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.processes import process_state, under_torchrun

if TYPE_CHECKING:
    from fuxictr_llm.common.runs import Run
    from fuxictr_llm.config.resolve import Experiment


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "make what an experiment needs from a language model, and print where it is"
    parser = add_command(commands, "encode", execute, text)
    parser.add_argument("--values", nargs="+", metavar="COLUMN", help="vectors of the values of these columns instead")
    parser.add_argument("--dry-run", action="store_true", help="print what it would use, and stop")
    parser.add_argument("--format", choices=("npz", "h5"), help="with --values: kind of file (default: npz)")


def execute(args: argparse.Namespace) -> None:
    """Make the files and print their paths."""
    if args.values:
        if under_torchrun():
            raise _unshared("--values")
        _encode_values(args)
        return
    if args.format:
        raise UserError("--format goes with --values")
    experiment = experiment_of(args)
    from fuxictr_llm.config.language_models import asks_for_vectors
    from fuxictr_llm.data.held import holding
    from fuxictr_llm.experiment.preparation import prepare_run
    from fuxictr_llm.registry import find_method

    if not experiment.params["method"] and not asks_for_vectors(experiment.params):
        raise UserError(
            f"expid {experiment.expid!r} names no method and no column has pretrained_emb: llm, so it needs nothing "
            "from a language model; --values COLUMN makes vectors of a column's values"
        )
    if under_torchrun():
        method = experiment.params["method"]
        if method is None or not find_method(method).model_cls.encodes_together:
            raise _unshared(f"encode of {method or 'columns'}")
    if args.dry_run:
        _print_needs(experiment)
        return
    with holding(experiment.params):
        run = prepare_run(experiment, experiment.expid, encode_only=True)
    _print_files(run)


def _unshared(what: str) -> UserError:
    return UserError(f"{what} does not share its work among torchrun's processes; start it without torchrun")


def _encode_values(args: argparse.Namespace) -> None:
    """Vectors as the language model gives them, unless `--set` has them reduced or scaled."""
    asked = {
        "feature_specs": [{"name": args.values, "pretrained_emb": "llm"}],
        "value_dim": "full",
        "value_scale": None,
    }
    experiment = experiment_of(args, asked)
    if args.dry_run:
        _print_needs(experiment)
        return
    from fuxictr_llm.config.language_models import value_config
    from fuxictr_llm.data.held import holding
    from fuxictr_llm.experiment.preparation import prepare_data
    from fuxictr_llm.llm.vectors.values import make_value_vectors

    # They only made the keys of value vectors known; make_value_vectors checks the columns under the option's name.
    experiment = replace(experiment, params={**experiment.params, "feature_specs": None})
    with holding(experiment.params):
        run = prepare_data(experiment, experiment.expid)
        make_value_vectors(value_config(run.params), run, args.values, args.format or "npz")
    _print_files(run)


def _print_needs(experiment: "Experiment") -> None:
    from fuxictr_llm.commands.needs import needs_of

    print(*needs_of(experiment, encode_only=True), sep="\n")


def _print_files(run: "Run") -> None:
    if not process_state().is_main_process:
        return
    files = [run.notes.get("field_vectors", {}), *run.notes.get("value_vectors", {}).get("columns", {}).values()]
    files += run.notes.get("text_vectors", {}).values()
    for path in dict.fromkeys(file["path"] for file in files if file):
        print(path)
