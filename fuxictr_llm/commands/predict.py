"""`predict`: probabilities for a file of raw rows."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from fuxictr_llm.commands import Commands, add_served_model, new_command, served_model_of


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "predict for raw rows (csv or parquet) with a trained model, and measure where they have labels"
    parser = new_command(commands, "predict", execute, text)
    add_served_model(parser)
    parser.add_argument("--data", required=True, type=Path, metavar="FILE", help="csv, csv.gz or parquet of raw rows")
    text = "csv or parquet to write: the same rows, with a column LABEL_probability for each label"
    parser.add_argument("--to", type=Path, metavar="FILE", help=text)
    parser.add_argument("--sep", help="between the cells of csv (default: as in training)")


def execute(args: argparse.Namespace) -> None:
    """Predict, and print counts and metrics."""
    with served_model_of(args) as served:
        from fuxictr_llm.serving.predict import predict_file

        predicted = predict_file(served, args.data, args.to, _unescaped(args.sep))
    counts = predicted.counts
    print(f"rows          {counts.rows:,}")
    print(f"unseen values {_listed(counts.unseen)}")
    print(f"empty cells   {_listed(counts.blank)}")
    if predicted.metrics is None:
        print(f"no metrics    {predicted.unmeasured}")
    for name, value in (predicted.metrics or {}).items():
        print(f"{name:13} {float(value)!r}")
    for name in predicted.left_out:
        print(f"{name:13} needs the column of group_id, which the rows lack")
    if args.to:
        print(args.to)


def _unescaped(sep: str | None) -> str | None:
    return "\t" if sep == "\\t" else sep


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"
