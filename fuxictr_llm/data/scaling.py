"""Statistics with which FuxiCTR's normalizers would scale numbers to nonsense."""

import math
from collections.abc import Mapping
from typing import Any

from fuxictr_llm.errors import UserError


class ScalesConstants:
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
