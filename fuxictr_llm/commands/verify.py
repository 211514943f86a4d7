"""`verify`: our rows of a board beside the published figures."""

import argparse
import time
from contextlib import nullcontext
from pathlib import Path

from fuxictr_llm.commands import Commands, add_zoo, new_command
from fuxictr_llm.commands.places import add_places, place_of
from fuxictr_llm.common.errors import UserError


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "run our rows of a board and compare them with the published figures"
    parser = new_command(commands, "verify", execute, text)
    parser.add_argument("--board", required=True, help="frappe_x1, criteo_x1, llactr_gift, ...")
    parser.add_argument("--models", nargs="+", default=[], help="rows of it (default: all)")
    text = "one number: so many for each row, its published one first; several: these (default: 1)"
    parser.add_argument("--seeds", nargs="+", type=int, default=[1], metavar="N", help=text)
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the runs (default: leaderboards/BOARD)")
    parser.add_argument("--retry-failed", action="store_true", help="run those again that failed")
    parser.add_argument("--config", metavar="DIR", help="config directory with rows and boards of your own")
    add_places(parser, jobs=1)
    text = "list what is done, failed and to do, and what it would take, and stop"
    parser.add_argument("--dry-run", action="store_true", help=text)
    text = "change a setting of all rows; the comparison says so"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)
    add_zoo(parser)


def execute(args: argparse.Namespace) -> None:
    """Run what is left to run, print the comparison and write it as verify.md."""
    from fuxictr_llm.host.checkout import use_checkout

    use_checkout(args.zoo)
    from fuxictr_llm.leaderboard.boards.published import read_board

    read_board(args.board, args.config)  # what is misspelt is said before torch is imported
    from rich.console import Console

    from fuxictr_llm.commands.needs import print_plan
    from fuxictr_llm.common.runs import versions
    from fuxictr_llm.config.resolve import parse_overrides
    from fuxictr_llm.leaderboard.boards.verify import comparison_on_screen, comparison_page, verify, write_page
    from fuxictr_llm.leaderboard.plan.plan import Plan
    from fuxictr_llm.leaderboard.run.engine import run_plan
    from fuxictr_llm.leaderboard.run.results import Results

    if min(args.seeds) < 0 or args.seeds == [0]:
        raise UserError(f"--seeds {args.seeds[0]}: give a number of seeds, 1 or more, or the seeds themselves")
    place = place_of(args, jobs=1)
    seeds = args.seeds[0] if len(args.seeds) == 1 else args.seeds
    folder, console = args.out or Path("leaderboards", args.board), Console(highlight=False)

    def run(plan: Plan) -> Results:
        results = Results(folder, plan)
        if executor is None:
            print_plan(results, place, args.retry_failed, console)
            return results
        # The folder may be a leaderboard's, with runs to share and a plan to keep.
        run_plan(results, executor=executor, retry_failed=args.retry_failed, save_plan=False)
        results.read()
        return results

    options = {"models": args.models, "seeds": seeds, "config": args.config, "zoo": args.zoo}
    with nullcontext() if args.dry_run else place.executor() as executor:
        rows = verify(args.board, run, **options, overrides=parse_overrides(args.set), gpu=place.gpu)
    if args.dry_run:
        return
    console.print(comparison_on_screen(args.board, rows))
    tools = ", ".join(
        f"{name} {version}" for name, version in versions().items() if name in ("fuxictr-llm", "fuxictr", "torch")
    )
    data = {row.data for row in rows if row.data}
    facts = [f"{time.strftime('%Y-%m-%d')}, {tools}", *(f"data files: {text}" for text in data)]
    write_page(folder / "verify.md", comparison_page(args.board, rows, facts))
