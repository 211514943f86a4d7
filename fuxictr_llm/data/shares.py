"""`share_embedding`: a column takes the embedding, and the ids, of another one, which FuxiCTR must have seen before."""

import logging
from collections.abc import Mapping
from typing import Any

from fuxictr_llm.data.raw import feature_columns
from fuxictr_llm.errors import UserError, unknown

WITH_VALUES = ("categorical", "sequence")


def check_shares(params: Mapping[str, Any]) -> None:
    """Check what the columns of a config share.

    Raises:
        UserError: a column shares the embedding of one that comes later, is inactive, unknown, of a type or dtype
            that has other values, shares another's itself, or is the column itself.
    """
    columns = {col["name"]: col for col in feature_columns(params)}
    places = {name: place for place, name in enumerate(columns)}
    for name, col in columns.items():
        if "share_embedding" not in col or not col.get("active", True):
            continue
        target = col["share_embedding"]
        shares = f"column {name!r} has share_embedding: {target}"
        if col["type"] not in WITH_VALUES:
            raise UserError(f"{shares}, and is of type {col['type']}, which has no values to share; leave the key out")
        if target is None:
            raise UserError(f"column {name!r} has share_embedding: null; leave the key out, or name a column")
        if target == name:
            raise UserError(f"{shares}, which is the column itself; leave the key out, or name another column")
        if target not in columns:
            raise unknown("column", target, columns, f"share_embedding of column {name!r}")
        other = columns[target]
        if not other.get("active", True):
            raise UserError(f"{shares}, which is not active; set active: true for {target!r}, or leave the key out")
        if other["type"] not in WITH_VALUES:
            raise UserError(
                f"{shares}, which is of type {other['type']} and has no values; name a categorical or sequence column"
            )
        if "share_embedding" in other:
            first = _first(columns, target)
            way_out = f"name the first one in both: share_embedding: {first}" if first else "leave the key out of one"
            raise UserError(f"{shares}, which has share_embedding: {other['share_embedding']} itself; {way_out}")
        if places[target] > places[name]:
            raise UserError(f"{shares}, which comes later in feature_cols; put {target!r} in front of {name!r}")
        if not (col.get("preprocess") or other.get("preprocess")) and _are_texts(col) != _are_texts(other):
            number = name if _are_texts(other) else target
            raise UserError(
                f"{shares}, but the values of one are texts and of the other numbers, so that none is the same; "
                f"give {number!r} dtype: str"
            )


def check_shares_used(
    features: Mapping[str, Mapping[str, Any]], built: Mapping[str, Mapping[str, Any]], dataset_id: str
) -> None:
    """Check what the columns that a model is given share, after `use_features` and `feature_specs`.

    Raises:
        UserError: the one that shares comes first, so that it would have an embedding of its own, or feature_specs
            name another column than the data set was built with.
    """
    order = list(features)
    for name, spec in features.items():
        target = spec.get("share_embedding")
        if target is None:
            continue
        if target != built[name].get("share_embedding"):
            raise UserError(
                f"share_embedding: {target} of column {name!r} in feature_specs: data set {dataset_id!r} was built "
                "without it, so the two have other ids; say it in feature_cols"
            )
        if target not in features:
            logging.warning(
                "column %r shares the embedding of %r, which use_features leaves out: it has one of its own",
                name,
                target,
            )
        elif order.index(target) > order.index(name):
            raise UserError(
                f"use_features names {name!r} before {target!r}, whose embedding it shares; put {target!r} in front"
            )


def _first(columns: Mapping[str, Mapping[str, Any]], name: str) -> str | None:
    """The column at the end of a chain of shares; None where it is a circle or ends in an unknown one."""
    seen = set()
    while name in columns and name not in seen:
        if "share_embedding" not in columns[name]:
            return name
        seen.add(name)
        name = columns[name]["share_embedding"]
    return None


def _are_texts(col: Mapping[str, Any]) -> bool:
    return col["type"] == "sequence" or col.get("dtype") in ("str", str)
