"""`predict`: probabilities for a file of raw rows."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from fuxictr_llm.commands import Commands, add_zoo, chosen_gpu, new_command
from fuxictr_llm.common.run_files import find_run
from fuxictr_llm.host.checkout import use_checkout


def add(commands: Commands) -> None:
    """Declare the command."""
    text = "predict for raw rows (csv or parquet) with a trained model, and measure where they have labels"
    parser = new_command(commands, "predict", execute, text)
    text = "an exported folder, or a run: <model_root>/<dataset_id>/<model_id>"
    parser.add_argument("--model", required=True, metavar="DIR|RUN", help=text)
    parser.add_argument("--data", required=True, type=Path, metavar="FILE", help="csv, csv.gz or parquet of raw rows")
    text = "csv or parquet to write: the same rows, with a column LABEL_probability for each label"
    parser.add_argument("--to", type=Path, metavar="FILE", help=text)
    parser.add_argument("--sep", help="between the cells of csv (default: as in training)")
    parser.add_argument("--gpu", type=int, default=-1, help="index of the GPU, -1 for the CPU")
    text = "the class that preprocessed the data set, where it is not FuxiCTR's own"
    parser.add_argument("--processor", metavar="FILE.py:CLASS", help=text)
    add_zoo(parser)


def execute(args: argparse.Namespace) -> None:
    """Predict, and print counts and metrics."""
    use_checkout(args.zoo)
    if not (Path(args.model) / "config.json").is_file():  # no export
        find_run(args.model)  # what is misspelt is said before torch is imported
    gpu = chosen_gpu(args.gpu)
    import torch

    from fuxictr_llm.registry import import_class
    from fuxictr_llm.serving.predict import predict_file, served_model

    processor = None
    if args.processor:
        from fuxictr_llm.host.preprocess import FeatureProcessor

        processor = import_class(args.processor, "--processor", FeatureProcessor)
    with served_model(args.model, gpu, feature_processor=processor) as served:
        threads = (served.config.get("evaluation") or {}).get("num_threads")
        if threads:  # the last digits may depend on it
            torch.set_num_threads(threads)
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
