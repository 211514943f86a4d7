"""`prepare`: get, check and build data."""

import argparse
from pathlib import Path

from fuxictr_llm.commands import Commands, add_command, experiment_of
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.common.progress import quiet_if


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "get, check and build the data of a data set or experiment, and stop"
    parser = add_command(commands, "prepare", execute, text)
    parser.add_argument("name", nargs="?", metavar="NAME", help="a data set; or give --expid")
    parser.add_argument("--raw", type=Path, metavar="DIR", help="the folder with its original files")


def execute(args: argparse.Namespace) -> None:
    """Make, or check and link, the raw files; build what can be built at once."""
    if bool(args.name) == bool(args.expid):
        raise UserError("prepare needs a data set's name or --expid, one of the two; run --list shows what there is")
    if args.raw and not args.raw.is_dir():
        raise UserError(f"--raw {str(args.raw)!r} is no folder")
    args.expid = args.expid or f"DeepFM_{args.name}"  # any backbone: the data set's keys are what counts
    experiment = experiment_of(args, forced={"raw_data": str(args.raw)} if args.raw else {})
    params = experiment.params
    if args.raw and not params.get("prepare"):
        with quiet_if(params["verbose"] == 0):
            _take_published(params, args.raw)
        return
    from fuxictr_llm.data.build import built_data
    from fuxictr_llm.data.prepare import prepare_raw_data

    with quiet_if(params["verbose"] == 0):
        prepare_raw_data(params)
        built_data(params)
    print(Path(params["data_root"]) / params["dataset_id"])


def _take_published(params: dict, folder: Path) -> None:
    from fuxictr_llm.data.prepare import published_files, take_published

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
