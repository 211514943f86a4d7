"""Files of `cold_catalog`: what is in their cells."""

from pathlib import Path

import polars as pl
import pytest

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.llm.texts.value_texts import read_catalog
from support import edit


def test_cells_of_a_catalog_that_are_no_text_or_no_numbers_are_named(tmp_path):
    columns = {
        name: {"type": kind} for name, kind in {"item": "categorical", "year": "numeric", "tags": "meta"}.items()
    }
    numbers, lists = str(tmp_path / "numbers.csv"), str(tmp_path / "lists.parquet")
    Path(numbers).write_text("item,year,other\nx1,1e3,a\nx2,,b\nx3,NaN,c\nx4,about 2001,d\n")
    with pytest.raises(UserError, match=r"numbers.csv' has 'about 2001' in row 4 of the numeric column 'year'"):
        read_catalog(numbers, "item", columns, [])
    edit(Path(numbers), "about 2001", "-2001.5")
    assert read_catalog(numbers, "item", columns, [])["year"].to_list() == ["1e3", "", "NaN", "-2001.5"]
    pl.DataFrame({"item": ["x1"], "tags": [["a", "b"]]}).write_parquet(lists)
    with pytest.raises(
        UserError, match=r"lists.parquet' has List\(String\) in column 'tags'; write its values as text"
    ):
        read_catalog(lists, "item", columns, [])
