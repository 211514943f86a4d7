"""`leaderboard`: backbones x methods x data sets x seeds, run in parallel, as tables with evidence."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fuxictr_llm.commands import Commands, add_zoo, new_command
from fuxictr_llm.commands.places import Place, add_places, place_of
from fuxictr_llm.commands.plans import (
    Tried,
    check_names_of,
    folder_for,
    may_be_made,
    names_of,
    plan_of,
    refuse_options,
    too_few_seeds,
    tried_by,
    tuning_options,
)
from fuxictr_llm.common.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from fuxictr_llm.leaderboard.plan.plan import Plan
    from fuxictr_llm.leaderboard.report.tables import Runs
    from fuxictr_llm.leaderboard.run.executor import Executor
    from fuxictr_llm.leaderboard.run.results import Results


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "run backbones with methods on data sets at several seeds, and make tables with evidence"
    parser = new_command(commands, "leaderboard", execute, text)
    plan = parser.add_argument_group("what is run")
    plan.add_argument("--backbones", nargs="+", metavar="NAME")
    plan.add_argument("--methods", nargs="+", metavar="NAME", help="plain: the backbone alone (default: plain)")
    plan.add_argument("--datasets", nargs="+", metavar="NAME")
    text = "a number N: the seeds 1 to N; several: these"
    plan.add_argument("--seeds", nargs="+", type=int, metavar="N", help=text)
    plan.add_argument("--seed", type=int, metavar="S", help="this seed alone (default: that of the configs)")
    text = "every seed on K further splits of the data, so that differences cover the data's sample, too"
    plan.add_argument("--splits", type=int, metavar="K", help=text)
    text = "time: rolling splits (default for data in the order of time)"
    plan.add_argument("--split-by", choices=("random", "time"), help=text)
    text = "each method's placebos as well; with names, of each method the first of these that it has: shuffled noise"
    plan.add_argument("--controls", nargs="*", metavar="NAME", help=text)
    plan.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting of all arms that have it (may be given repeatedly); num_threads is 1 unless it is set",
    )
    plan.add_argument("--config", help="config directory or YAML file (default: the packaged benchmark_configs)")
    add_zoo(plan)
    text = "a saved plan instead: plan.yaml of --out; or a table's runs, runs.jsonl.xz: makes the table again"
    plan.add_argument("--from", dest="plan_file", metavar="FILE", help=text)
    how = parser.add_argument_group("how")
    how.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="its folder (default: that of a saved plan, or one of this plan below leaderboards/)",
    )
    text = "of paper.tex: metrics, gain, RelaImpr, parameters, train_seconds, ... (default: AUC logloss)"
    how.add_argument("--paper-columns", nargs="+", metavar="NAME", help=text)
    add_places(how)
    how.add_argument("--retry-failed", action="store_true", help="try again what failed with this very plan")
    how.add_argument("--keep-weights", action="store_true", help="keep the trained weights beside the records")
    how.add_argument("--dry-run", action="store_true", help="list what is done, failed and to do, and stop")
    text = "run nothing; say how many seeds would show this gain in AUC (default: 0.001), by the runs that are there"
    how.add_argument("--power", type=float, nargs="?", const=0.001, metavar="GAIN", help=text)
    tuning = parser.add_argument_group("tuning, before")
    text = "so many trials on validation AUC for every arm, plain and controls included; then the seeds at its best"
    tuning.add_argument("--tune", type=int, metavar="N", help=text)
    tuning.add_argument("--space", type=Path, metavar="FILE.yaml", help="what may be tried; FuxiCTR's tuner files too")
    text = "the seeds 1 to N of every trial, whose AUC is their mean (default: the config's seed alone)"
    tuning.add_argument("--tune-seeds", type=int, metavar="N", help=text)
    text = "tune this backbone's arms; those of the others take their settings (default: each is tuned)"
    tuning.add_argument("--tune-on", metavar="BACKBONE", help=text)
    text = "end a trial whose validation AUC in an epoch is below the median of its arm's trials before"
    tuning.add_argument("--prune", action="store_true", help=text)


def execute(args: argparse.Namespace) -> None:
    """Run what is left of the plan, and write the tables.

    Raises:
        SystemExit: with code 1, where a run failed.
    """
    check_names_of(args)
    place = place_of(args)
    from_archive = bool(args.plan_file) and args.plan_file.endswith(".jsonl.xz")
    runs = not (args.dry_run or from_archive or args.power is not None)
    if runs and not may_be_made(args):
        _preload(place)  # imports while this process does the same

    from rich.console import Console

    console = Console(highlight=False)
    if args.paper_columns:
        from fuxictr_llm.leaderboard.report.paper import check_columns

        check_columns(args.paper_columns)
    if from_archive:
        refuse_options(args)
        _rebuild(args, console)
        return
    plan = plan_of(args, place.gpu)
    tried = tried_by(args, plan)
    folder = folder_for(args, plan, tried)
    if runs:
        _run(args, plan, tried, folder, place, console)
    else:
        _say(args, plan, tried, folder, place, console)


def _preload(place: Place) -> None:
    from fuxictr_llm.common.processes import start_server
    from fuxictr_llm.leaderboard.run import PRELOADED_FOR_RUNS

    if place.ray is None:
        start_server(PRELOADED_FOR_RUNS)


def _run(
    args: argparse.Namespace, plan: "Plan", tried: Tried | None, folder: Path, place: Place, console: "Console"
) -> None:
    from fuxictr_llm.leaderboard.run.folders import is_made, others_beside, take_finished
    from fuxictr_llm.leaderboard.run.results import Results

    if tried is None:
        results = Results(folder, plan)
        if not args.out:
            take_finished(results, others_beside(folder, names_of(args, plan)))
        left_failed = args.retry_failed and results.failures()
        if not left_failed and not args.paper_columns and is_made(results):
            shown = f"All of this plan was run before, nothing is to do: {folder / 'table.html'} and paper.tex have it."
            console.print(shown, markup=False, soft_wrap=True)
            _end(results, console)
            return
    if few := too_few_seeds(plan):
        console.print(few, markup=False, soft_wrap=True)
    _preload(place)

    from fuxictr_llm.leaderboard.report.live import LivePage
    from fuxictr_llm.leaderboard.run.engine import run_plan
    from fuxictr_llm.leaderboard.run.progress import Display

    with place.executor() as executor:
        if tried is not None:
            plan = _tuned(args, plan, tried, folder, executor, console)
        results = Results(folder, plan)
        for line in results.ignored:
            console.print(line, markup=False, soft_wrap=True)
        display = LivePage(Display(results, executor.slots(), console))
        with display.shown():
            kept = {"keep_weights": args.keep_weights, "keep_predictions": True, "measure_serving": True}
            run_plan(results, executor=executor, retry_failed=args.retry_failed, listener=display, **kept)
    console.print(*write_tables(results, args.paper_columns), sep="\n", markup=False, soft_wrap=True)
    _end(results, console)


def _end(results: "Results", console: "Console") -> None:
    """Say which runs failed.

    Raises:
        SystemExit: with code 1, where one did.
    """
    failures = results.failures()
    for failure in failures:
        console.print(f"FAILED {failure.arm}, {failure.repeat_text}: {failure.reason}", markup=False, soft_wrap=True)
    if failures:
        console.print(f"{len(failures)} of {len(results.plan.runs())} runs failed; --retry-failed tries them again")
        raise SystemExit(1)


def write_tables(results: "Results", columns: Sequence[str] | None = None) -> list[Path]:
    """Write the tables and plots of what is there, and the archive of its runs; their paths.

    Args:
        columns: of `paper.tex`; None: its default.

    Raises:
        UserError: the folder cannot be written to.
    """
    from datetime import datetime

    from fuxictr_llm.experiment.record import typed_command
    from fuxictr_llm.leaderboard.plan.arms import own_settings
    from fuxictr_llm.leaderboard.report.tables import Runs, write_tables_of
    from fuxictr_llm.leaderboard.run.archive import write_archive
    from fuxictr_llm.leaderboard.run.tuning import TUNING_FOLDER, tuned_by

    plan = results.plan
    facts = {"command": typed_command(), "plan": plan.sha256, "tuning": tuned_by(results.folder / TUNING_FOLDER, plan)}
    facts["date"] = f"{datetime.now():%Y-%m-%d %H:%M}"
    backbones: dict[tuple[str, str], list[str]] = {}  # of arms with the same settings
    for arm in plan.arms:
        settings = ", ".join(f"{key}: {value}" for key, value in own_settings(arm, plan.config).items())
        backbones.setdefault((f"{arm.label} on {arm.dataset}", settings), []).append(arm.backbone)
    for (arms, settings), names in backbones.items():
        facts[f"settings of {', '.join(names)} {arms}"] = settings
    runs = Runs(results.finished(), results.failures(), plan.runs())
    return write_tables_of(results.folder, runs, facts, lambda: write_archive(results, facts), columns)


def _rebuild(args: argparse.Namespace, console: "Console") -> None:
    """Write the tables of an archive's runs, as they are; or with `--power`, what more seeds would show.

    Raises:
        UserError: the archive cannot be read, or its runs cannot be put into the folder.
    """
    from fuxictr_llm.leaderboard.plan.names import default_folder
    from fuxictr_llm.leaderboard.report.tables import Runs, write_tables_of
    from fuxictr_llm.leaderboard.run.archive import ARCHIVE, holds, read_archive, unpack
    from fuxictr_llm.leaderboard.run.folders import beside

    others = {"--dry-run": args.dry_run, **tuning_options(args)}
    others |= {"--retry-failed": args.retry_failed, "--keep-weights": args.keep_weights}
    if given := [name for name, value in others.items() if value]:
        raise UserError(f"--from {args.plan_file} runs nothing, so that {given[0]} does not go with it")
    path = Path(args.plan_file)
    archive = read_archive(path)
    runs = Runs(archive.finished(), archive.failures(), archive.planned)
    if args.power is not None:
        _print_power(args.power, runs, console)
        return
    folder = args.out or (path.parent if path.name == ARCHIVE and (path.parent / "runs").is_dir() else None)
    if folder is None:
        folder = default_folder(run.arm.dataset for run in archive.planned)
        folder = folder if holds(folder, archive) else beside(folder, archive.plan)
    unpack(archive, path, folder)
    paths = write_tables_of(folder, runs, archive.facts, lambda: folder / ARCHIVE, args.paper_columns)
    console.print(*paths, sep="\n", markup=False, soft_wrap=True)
    console.print(f"python -m fuxictr_llm leaderboard --from {folder / 'plan.yaml'} goes on with it", markup=False)


def _print_power(gain: float, runs: "Runs", console: "Console") -> None:
    from fuxictr_llm.leaderboard.report.evidence import summarize
    from fuxictr_llm.leaderboard.report.overall import over_backbones
    from fuxictr_llm.leaderboard.report.power import power_lines

    if not 0 < gain < 0.5:
        raise UserError(f"--power {gain} is no gain in AUC: give one above 0 and below 0.5, as 0.001")
    rows = summarize(*runs)
    lines = power_lines(gain, rows, over_backbones(rows, runs.finished))
    console.print(*lines, sep="\n", markup=False, soft_wrap=True)


def _tuned(
    args: argparse.Namespace, plan: "Plan", tried: Tried, folder: Path, executor: "Executor", console: "Console"
) -> "Plan":
    """The plan with each arm at its best settings."""
    from fuxictr_llm.leaderboard.run.engine import run_plan
    from fuxictr_llm.leaderboard.run.lock import locked_folder
    from fuxictr_llm.leaderboard.run.progress import Display
    from fuxictr_llm.leaderboard.run.results import Results
    from fuxictr_llm.leaderboard.run.tuning import TUNING_FOLDER, Trials, tune_arms

    place = folder / TUNING_FOLDER

    def run(trials: Trials) -> None:
        results = Results(place, trials.plan)
        if not trials.to_do(results):
            return
        display = Display(results, executor.slots(), console)
        with display.shown():
            run_plan(results, executor=executor, agenda=trials, listener=display)

    with locked_folder(folder):
        return tune_arms(plan, tried.space, tried.tuning, place, run, retry_failed=args.retry_failed)


def _say(
    args: argparse.Namespace, plan: "Plan", tried: Tried | None, folder: Path, place: Place, console: "Console"
) -> None:
    """Say what is done and to do, and what it would take; or with `--power`, what more seeds would show."""
    from fuxictr_llm.commands.needs import print_plan
    from fuxictr_llm.leaderboard.report.tables import Runs
    from fuxictr_llm.leaderboard.run.results import Results

    results = Results(folder, plan)
    if args.power is not None:
        _print_power(args.power, Runs(results.finished(), results.failures(), plan.runs()), console)
        return
    if few := too_few_seeds(plan):
        console.print(few, markup=False, soft_wrap=True)
    if tried is not None:
        runs = args.tune * max(len(tried.tuning.seeds), 1) * len(tried.tuning.searched(plan).arms)
        first = f"first {tried.tuning}, over {args.space}: {runs} runs"
        console.print(f"{first}; then the plan at the best settings", markup=False)
    print_plan(results, place, args.retry_failed, console)
