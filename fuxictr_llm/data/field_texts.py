"""What the fields hold, in texts: collected from the train split while FuxiCTR's FeatureProcessor fits it.

`field_texts.json` in the built data set, one entry a field (no embedding, meta or label columns):

    {"<categorical or sequence>": {"distinct": N, "values": [...], "counts": [...]},
     "<numeric>": {"quantiles": [min, ..., max]}}

Values stand as in feature_vocab.json, in descending count: at most `MOST`, half of them the most frequent
ones, half spread evenly over the others. Fields that share an embedding have their own values.
"""

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from fuxictr.preprocess import FeatureProcessor

from fuxictr_llm.data.lists import TakesLists
from fuxictr_llm.data.scaling import ScalesConstants
from fuxictr_llm.errors import UserError
from fuxictr_llm.files import write_json

FILE = "field_texts.json"
MOST = 2000
QUANTILES = 21
# Ids that FuxiCTR reserves; they are no values.
RESERVED = ("__PAD__", "__OOV__")


class CollectsFieldTexts:
    """Mixed into a FeatureProcessor: `fit` also writes field_texts.json.

    The counts are those that FuxiCTR hands to its fit functions, so that the raw file is not read again
    for them. A pickle or copy is of the processor's own class and needs nothing of this package.
    """

    _host: type[FeatureProcessor]

    def fit(self, train_ddf: pl.LazyFrame, *args: Any, **kwargs: Any) -> None:
        self._counts: dict[str, Mapping[Any, int]] = {}
        super().fit(train_ddf, *args, **kwargs)
        write_json(Path(self.data_dir) / FILE, self._field_texts(train_ddf))
        del self._counts

    def fit_categorical_col(self, col: dict, col_series: Any = None, **kwargs: Any) -> None:
        self._counts[col["name"]] = _counts_of(col, col_series, **kwargs)
        super().fit_categorical_col(col, col_series, **kwargs)

    def fit_sequence_col(self, col: dict, stats_dict: Any = None, **kwargs: Any) -> None:
        self._counts[col["name"]] = _counts_of(col, stats_dict, **kwargs)
        super().fit_sequence_col(col, stats_dict, **kwargs)

    def _field_texts(self, train_ddf: pl.LazyFrame) -> dict[str, dict[str, Any]]:
        features = self.feature_map.features
        quantiles = _quantiles(train_ddf, [name for name, spec in features.items() if spec["type"] == "numeric"])
        texts = {}
        for name in features:
            if name in quantiles:
                texts[name] = {"quantiles": quantiles[name]}
            elif name in self._counts:
                tokenizer = self.processor_dict[f"{name}::tokenizer"]
                none = {tokenizer._na_value, *RESERVED}
                counts = self._counts[name].items()
                texts[name] = _most((value, n) for value, n in counts if value in tokenizer.vocab and value not in none)
        return texts

    def __reduce__(self):
        state = {key: value for key, value in vars(self).items() if key != "_counts"}
        return self._host.__new__, (self._host,), state


@functools.cache
def collecting(host: type[FeatureProcessor]) -> type[FeatureProcessor]:
    """The subclass of a FeatureProcessor that also takes lists, scales constants and writes field_texts.json."""
    bases = (CollectsFieldTexts, TakesLists, ScalesConstants, host)
    return type(host.__name__, bases, {"_host": host, "__module__": host.__module__})


def _counts_of(col: dict, stats: Any, min_categr_count: int = 1, **_: Any) -> Mapping[Any, int]:
    """The counts among FuxiCTR's statistics of a column, for which it raises an IndexError where none is enough."""
    if stats is None:
        raise UserError(f"column {col['name']!r}: FuxiCTR 2.3 cannot build remap: false here; leave it out")
    counts, least, missing = (
        stats["value_counts"],
        col.get("min_categr_count", min_categr_count),
        col.get("fill_na", ""),
    )
    if not any(count >= least and value != missing for value, count in counts.items()):
        raise UserError(
            f"column {col['name']!r} has no value that occurs min_categr_count={least} times in the train split; "
            "set active: false for it, or a lower min_categr_count"
        )
    return counts


def _most(counted: Any) -> dict[str, Any]:
    ranked = sorted(counted, key=lambda pair: (-pair[1], pair[0]))
    if len(ranked) <= MOST:
        kept = ranked
    else:
        rest = np.linspace(MOST // 2, len(ranked) - 1, MOST // 2).round().astype(int)
        kept = [*ranked[: MOST // 2], *(ranked[index] for index in rest)]
    values = [value if isinstance(value, str) else json.dumps(value) for value, _ in kept]
    return {"distinct": len(ranked), "values": values, "counts": [count for _, count in kept]}


def _quantiles(train_ddf: pl.LazyFrame, names: list[str]) -> dict[str, list[float]]:
    """Distinct values at evenly spaced ranks of each column, missing ones left out."""
    if not names:
        return {}
    table = train_ddf.select(pl.col(names).cast(pl.Float64)).collect(engine="streaming")
    found = {}
    for name in names:
        values = table.drop_in_place(name)
        values = values.filter(values.is_finite()).sort()
        ranks = np.linspace(0, max(len(values) - 1, 0), QUANTILES).round().astype(int)
        found[name] = values.gather(ranks).unique(maintain_order=True).to_list() if len(values) else []
    return found
