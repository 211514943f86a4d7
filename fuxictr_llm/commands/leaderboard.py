"""`leaderboard`: backbones x methods x data sets x seeds, run in parallel, as tables with evidence."""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuxictr_llm.commands import Commands, add_zoo, new_command
from fuxictr_llm.commands.places import Place, add_places, place_of
from fuxictr_llm.common.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from fuxictr_llm.leaderboard.plan.plan import Plan
    from fuxictr_llm.leaderboard.report.tables import Runs
    from fuxictr_llm.leaderboard.run.executor import Executor
    from fuxictr_llm.leaderboard.run.results import Results
    from fuxictr_llm.leaderboard.run.space import Space, Tuning

OF_RUNS = ("seeds", "seed", "splits", "split_by", "set")
PLAN_OPTIONS = ("backbones", "methods", "datasets", "controls", "config", "zoo", *OF_RUNS)


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
        help="its folder (default: that of a saved plan, or leaderboards/<data sets>)",
    )
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
    from fuxictr_llm.common.processes import start_server
    from fuxictr_llm.leaderboard.run import PRELOADED_FOR_RUNS

    args.controls = args.controls is not None and (args.controls or True)
    place = place_of(args)
    from_archive = bool(args.plan_file) and args.plan_file.endswith(".jsonl.xz")
    if not (args.dry_run or from_archive or args.power is not None or place.ray is not None):
        start_server(PRELOADED_FOR_RUNS)  # imports while this process does the same

    from rich.console import Console

    from fuxictr_llm.leaderboard.report.live import LivePage
    from fuxictr_llm.leaderboard.report.tables import Runs
    from fuxictr_llm.leaderboard.run.engine import run_plan
    from fuxictr_llm.leaderboard.run.progress import Display
    from fuxictr_llm.leaderboard.run.results import Results

    console = Console(highlight=False)
    if from_archive:
        _refuse_options(args)
        _rebuild(args, console)
        return
    plan = _plan(args, place.gpu)
    folder = args.out or _default_folder(args, plan)
    if args.power is not None:
        results = Results(folder, plan)
        _print_power(args.power, Runs(results.finished(), results.failures(), plan.runs()), console)
        return
    if few := _few_seeds(plan):
        console.print(few, markup=False, soft_wrap=True)
    if args.dry_run:
        _list(args, plan, folder, place, console)
        return
    with place.executor() as executor:
        if any(_tuning_options(args).values()):
            plan = _tuned(args, plan, folder, executor, console)
        results = Results(folder, plan)
        for line in results.ignored:
            console.print(line, markup=False, soft_wrap=True)
        display = LivePage(Display(results, executor.slots(), console))
        with display.shown():
            kept = {"keep_weights": args.keep_weights, "keep_predictions": True, "measure_serving": True}
            run_plan(results, executor=executor, retry_failed=args.retry_failed, listener=display, **kept)
    failures = results.failures()
    console.print(*write_tables(results), sep="\n", markup=False, soft_wrap=True)
    for failure in failures:
        console.print(f"FAILED {failure.arm}, {failure.repeat_text}: {failure.reason}", markup=False, soft_wrap=True)
    if failures:
        console.print(f"{len(failures)} of {len(plan.runs())} runs failed; --retry-failed tries them again")
        raise SystemExit(1)


def write_tables(results: "Results") -> list[Path]:
    """Write the tables and plots of what is there, and the archive of its runs; their paths.

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
    return write_tables_of(results.folder, runs, facts, lambda: write_archive(results, facts))


def _rebuild(args: argparse.Namespace, console: "Console") -> None:
    """Write the tables of an archive's runs, as they are; or with `--power`, what more seeds would show.

    Raises:
        UserError: the archive cannot be read, or its runs cannot be put into the folder.
    """
    from fuxictr_llm.leaderboard.report.tables import Runs, write_tables_of
    from fuxictr_llm.leaderboard.run.archive import ARCHIVE, read_archive, unpack

    others = {"--dry-run": args.dry_run, **_tuning_options(args)}
    others |= {"--retry-failed": args.retry_failed, "--keep-weights": args.keep_weights}
    if given := [name for name, value in others.items() if value]:
        raise UserError(f"--from {args.plan_file} runs nothing, so that {given[0]} does not go with it")
    path = Path(args.plan_file)
    archive = read_archive(path)
    runs = Runs(archive.finished(), archive.failures(), archive.planned)
    if args.power is not None:
        _print_power(args.power, runs, console)
        return
    names = dict.fromkeys(run.arm.dataset for run in archive.planned)
    folder = args.out or (
        path.parent if path.name == ARCHIVE and (path.parent / "runs").is_dir() else _folder_of(names)
    )
    unpack(archive, path, folder)
    paths = write_tables_of(folder, runs, archive.facts, lambda: folder / ARCHIVE)
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


def _plan(args: argparse.Namespace, gpu: int) -> "Plan":
    from fuxictr_llm.config.resolve import parse_overrides
    from fuxictr_llm.leaderboard.plan.plan import PLAIN, Plan, seeds_of

    if args.plan_file:
        _refuse_options(args)
        return Plan.read(args.plan_file, gpu)
    if args.seeds and args.seed is not None:
        raise UserError("--seeds and --seed are two ways to say the same; give one of them")
    seeds = [args.seed] if args.seed is not None else args.seeds or []
    return Plan.crossed(
        args.backbones or [],
        args.datasets or [],
        args.methods or [PLAIN],
        controls=args.controls,
        seeds=seeds_of(seeds[0]) if args.seeds and len(seeds) == 1 else seeds,
        config=args.config,
        zoo=args.zoo,
        overrides=parse_overrides(args.set),
        gpu=gpu,
        splits=0 if args.splits is None else args.splits,
        split_by=args.split_by,
    )


def _few_seeds(plan: "Plan") -> str:
    """That a plan has less seeds, or splits, than a verdict on a method needs; empty where it has not."""
    from fuxictr_llm.leaderboard.report.notes import few_seeds
    from fuxictr_llm.leaderboard.report.verdicts import FEWEST_SEEDS

    count, unit = (plan.splits, "split") if plan.splits else (len(plan.seeds) or 1, "seed")
    judged = any(arm.method for arm in plan.arms)
    return few_seeds(count, unit) if judged and count < FEWEST_SEEDS else ""


def _refuse_options(args: argparse.Namespace) -> None:
    """Refuse options that a saved plan has itself."""
    values = {name: getattr(args, name) for name in PLAN_OPTIONS}
    if given := [name for name, value in values.items() if value not in (None, []) and value is not False]:
        raise UserError(f"--{given[0].replace('_', '-')} is part of the plan that --from names; change it there")


def _tuning_options(args: argparse.Namespace) -> dict[str, Any]:
    given = {"--tune": args.tune, "--space": args.space, "--tune-seeds": args.tune_seeds, "--tune-on": args.tune_on}
    return {**{name: value is not None for name, value in given.items()}, "--prune": args.prune}


def _tuning(args: argparse.Namespace, plan: "Plan") -> tuple["Tuning", "Space"]:
    """How settings are searched, and which."""
    from fuxictr_llm.leaderboard.run.pruning import check_curves
    from fuxictr_llm.leaderboard.run.space import Tuning, read_space

    if args.tune is None or not args.space or args.tune < 1:
        raise UserError("--tune N, with N of 1 or more, and --space FILE.yaml go together")
    if args.tune_seeds is not None and args.tune_seeds < 1:
        raise UserError(f"--tune-seeds {args.tune_seeds}: a trial needs 1 seed or more")
    tuning = Tuning(args.tune, tuple(range(1, (args.tune_seeds or 0) + 1)), args.tune_on, args.prune)
    space = read_space(args.space, plan, tuning)
    if tuning.prune:
        check_curves(tuning.searched(plan))
    return tuning, space


def _tuned(args: argparse.Namespace, plan: "Plan", folder: Path, executor: "Executor", console: "Console") -> "Plan":
    """The plan with each arm at its best settings."""
    from fuxictr_llm.leaderboard.run.engine import run_plan
    from fuxictr_llm.leaderboard.run.lock import locked_folder
    from fuxictr_llm.leaderboard.run.progress import Display
    from fuxictr_llm.leaderboard.run.results import Results
    from fuxictr_llm.leaderboard.run.tuning import TUNING_FOLDER, Trials, tune_arms

    tuning, space = _tuning(args, plan)
    place = folder / TUNING_FOLDER

    def run(trials: Trials) -> None:
        results = Results(place, trials.plan)
        if not trials.to_do(results):
            return
        display = Display(results, executor.slots(), console)
        with display.shown():
            run_plan(results, executor=executor, agenda=trials, listener=display)

    with locked_folder(folder):
        return tune_arms(plan, space, tuning, place, run, retry_failed=args.retry_failed)


def _default_folder(args: argparse.Namespace, plan: "Plan") -> Path:
    own = Path(args.plan_file).parent if args.plan_file else None
    if own and (own / "runs").is_dir() and Path(args.plan_file).name == "plan.yaml":  # a leaderboard's, which goes on
        return own
    return _folder_of([Path(args.plan_file).stem] if args.plan_file else (arm.dataset for arm in plan.arms))


def _folder_of(names: Iterable[str]) -> Path:
    return Path("leaderboards") / "-".join(dict.fromkeys(names)).replace("/", "-")


def _list(args: argparse.Namespace, plan: "Plan", folder: Path, place: Place, console: "Console") -> None:
    """Say what is done and to do, and what it would take."""
    from fuxictr_llm.commands.needs import print_plan
    from fuxictr_llm.leaderboard.run.results import Results

    if any(_tuning_options(args).values()):
        tuning, _ = _tuning(args, plan)
        runs = args.tune * max(len(tuning.seeds), 1) * len(tuning.searched(plan).arms)
        first = f"first {tuning}, over {args.space}: {runs} runs"
        console.print(f"{first}; then the plan at the best settings", markup=False)
    print_plan(Results(folder, plan), place, args.retry_failed, console)
