"""`bars`: finished runs as a row in BARS's folder form."""

import argparse
from pathlib import Path

from fuxictr_llm.commands import Commands, new_command
from fuxictr_llm.common.run_files import find_run


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "write runs of one experiment as a row in the folder form of BARS"
    parser = new_command(commands, "bars", execute, text)
    text = "what a run's summary prints, or its .run.json; several are the seeds of one row"
    parser.add_argument("--run", nargs="+", required=True, help=text)
    text = "where the folder <Model>/<Model>_<data set> is made; in a checkout of BARS ranking/ctr"
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help=text)


def execute(args: argparse.Namespace) -> None:
    """Write the folder and print it."""
    for run in args.run:
        find_run(run)  # what is misspelt is said before torch is imported
    from fuxictr_llm.leaderboard.boards.bars import write_row

    print(write_row(args.run, args.out))
