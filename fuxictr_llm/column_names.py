"""Names of columns that FuxiCTR or polars cannot take, found before anything is built or asked."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import polars as pl
from torch import nn

from fuxictr_llm.data.raw import feature_columns, label_columns
from fuxictr_llm.errors import UserError

# What methods add to a batch.
ADDED = re.compile(r"llm_vector|llm_vectors_\d+|llm_text_\d+")


def check_declared(params: Mapping[str, Any]) -> None:
    """Check the active columns and the labels of a data set's config.

    Raises:
        UserError: a name is of no use, or stands twice.
    """
    columns = [col for col in feature_columns(params) if col.get("active", True)]
    labels = [col["name"] for col in label_columns(params)]
    names = [*labels, *(col["name"] for col in columns)]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        what = "a label and a feature" if twice[0] in labels else "a column"
        raise UserError(
            f"{twice[0]!r} is {what} more than once in feature_cols and label_col; leave one, or set active: false"
        )
    for name in names:
        # A name that reads as a pattern would stand for other columns.
        if not name.strip() or pl.col(name).meta.has_multiple_outputs():
            raise _wrong(name, "polars reads it as a pattern" if name.strip() else "it is empty", copied=False)
    used = params.get("use_features") or [col["name"] for col in columns]
    check_embedded([col["name"] for col in columns if col["type"] != "meta" and col["name"] in used], params)


def check_embedded(names: Iterable[str], params: Mapping[str, Any]) -> None:
    """Check the names of the columns that a model reads.

    Raises:
        UserError: FuxiCTR cannot keep an embedding under a name, or a method adds a column of that name.
    """
    for name in names:
        try:
            # Where FuxiCTR keeps its embeddings: it has attributes of its own, and paths with dots.
            nn.ModuleDict({name: nn.Identity()})
        except (KeyError, TypeError) as error:
            raise _wrong(name, f"embeddings are kept by name, and {error.args[0]}", copied=bool(name)) from error
        if params.get("method") and ADDED.fullmatch(name):
            raise _wrong(name, "a method adds a column of that name")


def _wrong(name: str, why: str, copied: bool = True) -> UserError:
    other = re.sub(r"\W", "_", name) + "_"
    copy = f", or declare {{name: {other}, preprocess: copy_from({name}), ...}} in its place" if copied else ""
    return UserError(f"a column cannot be called {name!r}: {why}; rename it in the raw files{copy}")
