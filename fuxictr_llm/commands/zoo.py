"""`zoo`: the support table of our zoo or of a FuxiCTR checkout's."""

import argparse
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fuxictr_llm.commands import add_methods, add_zoo, default_jobs, methods_of
from fuxictr_llm.common.errors import UserError
from fuxictr_llm.host.checkout import use_checkout

if TYPE_CHECKING:
    from fuxictr_llm.diagnosis.zoo_table import ZooRow

# What every class is looked at with, and what torch imports with its first optimizer.
PRELOADED_FOR_CHECKS = ("fuxictr_llm.diagnosis.doctor", "torch._dynamo")
PRELOADED_FOR_GRAPHS = (*PRELOADED_FOR_CHECKS, "fuxictr_llm.serving.graph_checks", "onnxruntime", "onnxscript")


def add(commands: Any) -> None:
    """Declare the command."""
    text = "try every backbone with every method on tiny data, and print what works"
    parser = commands.add_parser("zoo", help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(command=zoo)
    add_zoo(parser)
    add_methods(parser)
    parser.add_argument(
        "--onnx", action="store_true", help="export each class as ONNX too, plain and with each method, and compare"
    )
    parser.add_argument("--to", type=Path, metavar="FILE.md", help="write the table as Markdown as well")
    parser.add_argument("--jobs", type=int, help="how many classes at the same time (default: one a core, at most 8)")
    parser.add_argument("--timeout", type=float, default=120, metavar="S", help="seconds a class may take")


def zoo(args: argparse.Namespace) -> None:
    """Print the table as far as it is, and write it when all is done."""
    jobs = default_jobs() if args.jobs is None else args.jobs
    if jobs < 1:
        raise UserError(f"--jobs {args.jobs} is less than 1")
    if not args.timeout > 0:
        raise UserError(f"--timeout {args.timeout} is not more than 0")
    if args.to and not args.to.parent.is_dir():
        raise UserError(f"--to {str(args.to)!r}: there is no folder {str(args.to.parent)!r}")
    use_checkout(args.zoo)
    from rich.console import Console
    from rich.progress import Progress

    from fuxictr_llm.common.files import replacing
    from fuxictr_llm.config.origins import origin_of
    from fuxictr_llm.diagnosis.doctor import look_at
    from fuxictr_llm.diagnosis.zoo_table import (
        GRAPH,
        LEGEND,
        as_markdown,
        failed,
        look_at_all,
        made_with,
        notes,
        summary,
    )
    from fuxictr_llm.host.checkout import current_checkout
    from fuxictr_llm.registry import backbone_names, find_method

    checkout, methods = current_checkout(), methods_of(args)
    if checkout:
        names, title = checkout.names(), "FuxiCTR's zoo"
    else:
        names, title = backbone_names(), "Our zoo and the wheel's LongCTR"
    # Other processes have registered none: they find a method by its file or module.
    found = [origin_of(find_method(method).model_cls).name for method in methods]
    look = partial(look_at, methods=found)
    preload: tuple[str, ...] = PRELOADED_FOR_CHECKS
    if args.onnx:
        from fuxictr_llm.serving.graph_checks import look_with_graph
        from fuxictr_llm.serving.onnx import check_onnx

        check_onnx()
        look, preload, methods = partial(look_with_graph, methods=found), PRELOADED_FOR_GRAPHS, [*methods, GRAPH]
    rows, console = list["ZooRow"](), Console(highlight=False)
    # Progress goes to the error stream, so that the output is the table alone.
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("trying", total=len(names))
        for row in look_at_all(names, look, methods, jobs, args.timeout, preload):
            rows.append(row.without_path(f"{checkout.folder}{os.sep}") if checkout else row)
            progress.update(task, advance=1, description=row.backbone)
    if checkout:
        damaged = (failed(file.name, methods, reason) for file, reason in checkout.damaged.items())
        rows += [row.without_path(f"{checkout.folder}{os.sep}") for row in damaged]
    rows.sort(key=lambda row: row.backbone.lower())
    made = made_with(checkout.folder if checkout else None)
    console.print(_table(rows))
    text = ["", LEGEND, "", f"{summary(rows)} ({made}).", *notes(rows)]
    console.print(*text, sep="\n", markup=False)
    if args.to:
        with replacing(args.to) as temporary:
            temporary.write_text(as_markdown(rows, made, title), encoding="utf-8")
        console.print(str(args.to), markup=False)


def _table(rows: Sequence["ZooRow"]) -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from fuxictr_llm.diagnosis.zoo_table import columns_of

    table = Table(box=box.SIMPLE_HEAD, show_edge=False)
    for column in columns_of(rows):
        table.add_column(column, overflow="fold", no_wrap=column != "without")
    for row in rows:
        table.add_row(*map(escape, row.cells))
    return table
