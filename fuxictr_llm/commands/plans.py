"""What the options of `leaderboard` name: its plan, the search of settings before it, and its folder."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fuxictr_llm.common.errors import UserError

if TYPE_CHECKING:
    from fuxictr_llm.leaderboard.plan.plan import Plan
    from fuxictr_llm.leaderboard.run.space import Space, Tuning

OF_RUNS = ("seeds", "seed", "splits", "split_by", "set")
PLAN_OPTIONS = ("backbones", "methods", "datasets", "controls", "config", "zoo", *OF_RUNS)


class Tried(NamedTuple):
    """A search of settings: how, and which."""

    tuning: "Tuning"
    space: "Space"


def check_names_of(args: argparse.Namespace) -> None:
    """Check the names of backbones, methods and data sets before torch is imported.

    Raises:
        UserError: one is unknown.
    """
    from fuxictr_llm.host.checkout import use_checkout
    from fuxictr_llm.leaderboard.plan.names import PLAIN, check_names

    use_checkout(args.zoo)
    check_names(args.backbones or [], args.methods or [PLAIN], args.datasets or [], args.config)


def plan_of(args: argparse.Namespace, gpu: int) -> "Plan":
    """The plan of the options.

    Raises:
        UserError: something is unknown, does not fit, or is given twice.
    """
    from fuxictr_llm.config.resolve import parse_overrides
    from fuxictr_llm.leaderboard.plan.plan import PLAIN, Plan, seeds_of

    if args.plan_file:
        refuse_options(args)
        return Plan.read(args.plan_file, gpu)
    if args.seeds and args.seed is not None:
        raise UserError("--seeds and --seed are two ways to say the same; give one of them")
    seeds = [args.seed] if args.seed is not None else args.seeds or []
    return Plan.crossed(
        args.backbones or [],
        args.datasets or [],
        args.methods or [PLAIN],
        controls=controls_of(args),
        seeds=seeds_of(seeds[0]) if args.seeds and len(seeds) == 1 else seeds,
        config=args.config,
        zoo=args.zoo,
        overrides=parse_overrides(args.set),
        gpu=gpu,
        splits=0 if args.splits is None else args.splits,
        split_by=args.split_by,
    )


def controls_of(args: argparse.Namespace) -> bool | list[str]:
    """`--controls` alone: all there are; with names: these; not given: none."""
    return args.controls is not None and (args.controls or True)


def too_few_seeds(plan: "Plan") -> str:
    """That a plan has less seeds, or splits, than a verdict on a method needs; empty where it has not."""
    from fuxictr_llm.leaderboard.report.notes import few_seeds
    from fuxictr_llm.leaderboard.report.verdicts import FEWEST_SEEDS

    count, unit = (plan.splits, "split") if plan.splits else (len(plan.seeds) or 1, "seed")
    judged = any(arm.method for arm in plan.arms)
    return few_seeds(count, unit) if judged and count < FEWEST_SEEDS else ""


def refuse_options(args: argparse.Namespace) -> None:
    """Refuse options that a saved plan has itself.

    Raises:
        UserError: one is given.
    """
    values = {**{name: getattr(args, name) for name in PLAN_OPTIONS}, "controls": controls_of(args)}
    if given := [name for name, value in values.items() if value not in (None, []) and value is not False]:
        raise UserError(f"--{given[0].replace('_', '-')} is part of the plan that --from names; change it there")


def tuning_options(args: argparse.Namespace) -> dict[str, Any]:
    """The options of a search -> whether they are given."""
    given = {"--tune": args.tune, "--space": args.space, "--tune-seeds": args.tune_seeds, "--tune-on": args.tune_on}
    return {**{name: value is not None for name, value in given.items()}, "--prune": args.prune}


def tried_by(args: argparse.Namespace, plan: "Plan") -> Tried | None:
    """The search of the options; None where they ask for none.

    Raises:
        UserError: an option is missing, or does not fit the plan.
    """
    from fuxictr_llm.leaderboard.run.pruning import check_curves
    from fuxictr_llm.leaderboard.run.space import Tuning, read_space

    if not any(tuning_options(args).values()):
        return None
    if args.tune is None or not args.space or args.tune < 1:
        raise UserError("--tune N, with N of 1 or more, and --space FILE.yaml go together")
    if args.tune_seeds is not None and args.tune_seeds < 1:
        raise UserError(f"--tune-seeds {args.tune_seeds}: a trial needs 1 seed or more")
    tuning = Tuning(args.tune, tuple(range(1, (args.tune_seeds or 0) + 1)), args.tune_on, args.prune)
    space = read_space(args.space, plan, tuning)
    if tuning.prune:
        check_curves(tuning.searched(plan))
    return Tried(tuning, space)


def folder_for(args: argparse.Namespace, plan: "Plan", tried: Tried | None) -> Path:
    """The folder of a plan: `--out`, that of a saved plan, or one below `leaderboards`.

    Raises:
        UserError: `--out` is another leaderboard's.
    """
    from fuxictr_llm.leaderboard.plan.names import default_folder
    from fuxictr_llm.leaderboard.run.folders import check_folder, folder_of
    from fuxictr_llm.leaderboard.run.tuning import search_of

    search = search_of(plan, tried.space, tried.tuning) if tried else None
    own = args.out or _own_folder(args)
    if own is None:
        folder = folder_of(plan, names_of(args, plan), search)
        return default_folder(names_of(args, plan)) if args.power is not None and not folder.exists() else folder
    if args.power is None and not args.dry_run:  # these write nothing
        check_folder(own, plan, search)
    return own


def names_of(args: argparse.Namespace, plan: "Plan") -> Sequence[str]:
    """What a folder of a plan is called after: its data sets, or its file."""
    return [Path(args.plan_file).stem] if args.plan_file else [arm.dataset for arm in plan.arms]


def _own_folder(args: argparse.Namespace) -> Path | None:
    """The folder of a saved plan that is a leaderboard's, which goes on."""
    own = Path(args.plan_file).parent if args.plan_file else None
    return own if own and (own / "runs").is_dir() and Path(args.plan_file).name == "plan.yaml" else None


def may_be_made(args: argparse.Namespace) -> bool:
    """Whether there are tables where the plan's would be."""
    from fuxictr_llm.leaderboard.plan.names import default_folder

    folder = args.out or _own_folder(args)
    if folder is None:
        names = [Path(args.plan_file).stem] if args.plan_file else args.datasets or []
        folder = default_folder(names)
    return any(folder.parent.glob(f"{folder.name}*/table.md"))
