"""The first pass over a split's raw files: its labels and values are checked, and its missing values counted."""

from collections.abc import Mapping
from typing import Any

import polars as pl

from fuxictr_llm.data.fills import Counts, PlainFills
from fuxictr_llm.data.raw import RawSplit
from fuxictr_llm.data.raw_checks import LabelCheck, ValueCheck
from fuxictr_llm.data.watched import watched
from fuxictr_llm.host.preprocess import FeatureProcessor


def first_pass(
    processor: FeatureProcessor, raw: pl.LazyFrame, made: pl.LazyFrame, split: RawSplit, params: Mapping[str, Any]
) -> tuple[int, dict[str, Counts]]:
    """The number of rows of a split, and which of its values stand for missing ones.

    Args:
        processor: its columns say what is filled in.
        raw, made: the rows as they are read, and preprocessed.
        split: its files.
        params: settings with labels and columns.

    Raises:
        UserError: the files cannot be read, or what they hold cannot be built.
    """
    labels, values, fills = LabelCheck(raw, split, params), ValueCheck(made, split, params), PlainFills(processor, raw)
    try:
        with watched(labels.frame, f"checking {split.short_name}", split.about_rows) as of_labels:
            asked = [of_labels.select(labels.asked), values.frame.select(values.asked), fills.frame.select(fills.asked)]
            tables = pl.collect_all(asked, engine="streaming")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise split.unread(error) from error
    facts = [table.row(0, named=True) if table.width else {} for table in tables]
    rows = labels.check(facts[0])
    values.check(facts[1])
    return rows, fills.counts(facts[2])
