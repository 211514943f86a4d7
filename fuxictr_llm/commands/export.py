"""`export`: a trained run as a folder that serves it."""

import argparse
import sys
from pathlib import Path

from fuxictr_llm.commands import Commands, add_zoo, new_command
from fuxictr_llm.common.run_files import find_run
from fuxictr_llm.host.checkout import use_checkout


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "write a trained model as a folder that serves it"
    parser = new_command(commands, "export", execute, text)
    parser.add_argument(
        "--run", required=True, help="what a run's summary prints: <model_root>/<dataset_id>/<model_id>"
    )
    parser.add_argument("--to", required=True, type=Path, metavar="DIR", help="the folder to write")
    parser.add_argument("--onnx", action="store_true", help="write model.onnx too, checked with onnxruntime")
    parser.add_argument("--pt2", action="store_true", help="write model.pt2 too, the graph that torch.export makes")
    add_zoo(parser)


def execute(args: argparse.Namespace) -> None:
    """Write the folder and print it."""
    use_checkout(args.zoo)
    find_run(args.run)  # what is misspelt is said before torch is imported
    from fuxictr_llm.serving.export import export_run
    from fuxictr_llm.serving.preprocessing import missing_of

    folder = export_run(args.run, args.to, [kind for kind in ("onnx", "pt2") if getattr(args, kind)])
    if missing := missing_of(folder):
        print(f"warning: this export answers ids, and no raw rows: {missing}", file=sys.stderr)
    print(folder)
