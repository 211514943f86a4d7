"""Values at ranks, of a column in memory or found digit by digit in parts of a file, are those of the sorted column."""

import numpy as np
import polars as pl
import pytest

from fuxictr_llm.data import ranks
from fuxictr_llm.data.ranks import Column

DRAW = np.random.default_rng(0)
CASES = {
    "floats": DRAW.normal(size=1000) * 10.0 ** DRAW.integers(-300, 300, 1000),
    "whole": DRAW.integers(-5, 5, 1000).astype(float),
    "one value": np.full(1000, 0.1),
    "near": 1 + np.arange(1000) * 2.0**-52,
    "extremes": np.array([-0.0, 0.0, 5e-324, -5e-324, 1.7e308, -1.7e308, np.nan, np.inf, -np.inf, 1.0]),
    "one": np.array([3.5]),
}


@pytest.mark.parametrize("most", [0, 2**26], ids=["in passes", "in memory"])
@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_every_rank(tmp_path, monkeypatch, values, most):
    monkeypatch.setattr(ranks, "IN_MEMORY", most)
    monkeypatch.setattr(ranks, "PART_ROWS", 300)
    pl.DataFrame({"value": values}).write_parquet(tmp_path / "values.parquet")
    column, expected = Column(tmp_path / "values.parquet", "value"), np.sort(values[np.isfinite(values)])
    assert column.count() == len(expected)
    places = np.linspace(0, len(expected) - 1, 21).round().astype(int)
    assert column.at_ranks(places) == expected[places].tolist()
    for bound in expected[places]:
        assert column.count(below=bound) == np.searchsorted(expected, bound)
