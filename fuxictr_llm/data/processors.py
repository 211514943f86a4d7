"""`feature_processor:` of a data-set config: the class that reads, fits and transforms its raw files.

Columns of one value, and numbers too large for a mean, would be scaled to nonsense by FuxiCTR's normalizers; both are
handled here.
"""

import inspect
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from fuxictr_llm.common.code_digest import modules_of, sources_below
from fuxictr_llm.common.errors import UserError, unknown
from fuxictr_llm.common.files import digest_of
from fuxictr_llm.host.columns import feature_columns, label_columns
from fuxictr_llm.host.preprocess import FeatureProcessor
from fuxictr_llm.registry import import_class

# FuxiCTR's own, by the names of its modules.
NAMED = {name: f"fuxictr.datasets.{name}:CustomizedFeatureProcessor" for name in ("avazu", "criteo", "kkbox")}


class ScalesConstants(FeatureProcessor):
    """Mixed into a FeatureProcessor: the deviation of a column of one value is 0, which FuxiCTR takes for 1."""

    def fit_numeric_col(self, col: dict[str, Any], stats_dict: Mapping[str, Any] | None = None) -> None:
        if stats_dict and stats_dict.get("min") == stats_dict.get("max"):
            # Rounding leaves 1e-17 of a constant .1, and another value in valid would become 1e16.
            stats_dict = {**stats_dict, "std": 0.0}
        for name in ("mean", "std") if col.get("normalizer") == "StandardScaler" else ():
            if stats_dict and not math.isfinite(stats_dict.get(name) or 0.0):
                raise UserError(
                    f"column {col['name']!r}: the {name} of its train values is {stats_dict[name]}, as they reach from "
                    f"{stats_dict['min']} to {stats_dict['max']}; correct them, or leave normalizer out"
                )
        super().fit_numeric_col(col, stats_dict)


def find_processor(params: Mapping[str, Any]) -> type[FeatureProcessor]:
    """The data set's processor class, which has every function that the columns' `preprocess:` names.

    Raises:
        UserError: unknown name, a module that cannot be imported, no FeatureProcessor, a function that it
            lacks, or a `category_processor`, which FuxiCTR 2.3 cannot build.
    """
    name = params.get("feature_processor")
    cls = _find(name) if name else FeatureProcessor
    check_functions(cls, params)
    return cls


def check_functions(cls: type[FeatureProcessor], params: Mapping[str, Any]) -> None:
    """Check that a class has every function that the columns' `preprocess:` names.

    Raises:
        UserError: it lacks one, or a column has a `category_processor`, which FuxiCTR 2.3 cannot build.
    """
    name = params.get("feature_processor")
    for col in [*label_columns(params), *feature_columns(params)]:
        if col.get("category_processor"):
            raise UserError(
                f"column {col['name']!r}: FuxiCTR 2.3 cannot build category_processor {col['category_processor']!r}; "
                "put the column into buckets in the raw files, or with a preprocess function"
            )
        function = function_of(col)
        # FuxiCTR calls whatever its class has of that name: `load_pickle` too.
        if function and (function not in _functions(cls) or not callable(getattr(cls, function, None))):
            raise _lacks(cls, function, f"preprocess of column {col['name']!r}", name)


def code_of(name: str) -> str | None:
    """Digest of the sources of a processor and what they import, as far as they are not FuxiCTR's or a library's."""
    return code_of_class(_find(name))


def code_of_class(cls: type[FeatureProcessor]) -> str | None:
    """`code_of` for the class itself."""
    sources = sources_below(modules_of(cls))
    return digest_of(sources) if sources else None


def settings_of(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a processor's own constructor names: it is given all of them."""
    own = {key for cls in _find(name).__mro__ for key in _keywords(cls)} - {*_keywords(FeatureProcessor)}
    return {key: params[key] for key in sorted(own) if key in params}


def _keywords(cls: type) -> list[str]:
    return [*inspect.signature(vars(cls)["__init__"]).parameters] if "__init__" in vars(cls) else []


def function_of(col: Mapping[str, Any]) -> str | None:
    """The name of the function in a column's `preprocess: function` or `function(column, ...)`."""
    return re.split(r"[()]", col["preprocess"])[0] if col.get("preprocess") else None


def _find(name: str) -> type[FeatureProcessor]:
    if name not in NAMED and ":" not in name:
        raise unknown("feature_processor", name, [*NAMED, "package.module:Class"])
    return import_class(NAMED.get(name, name), "feature_processor", FeatureProcessor)


def _lacks(cls: type, function: str, where: str, name: str | None) -> UserError:
    having = [known for known in NAMED if known != name and function in _functions(_find(known))]
    if having:
        return UserError(f"{where} names {function!r}, which needs feature_processor: {having[0]} (got {name!r})")
    return unknown("function", function, _functions(cls), where)


def _functions(cls: type) -> Iterator[str]:
    """The functions made for `preprocess:`: `copy_from`, and what a subclass adds to FuxiCTR's class."""
    yield "copy_from"
    yield from (key for key in dir(cls) if not key.startswith("_") and not hasattr(FeatureProcessor, key))
