"""Numbers, texts and labels that cannot be used are named by column, file, row and value before anything is built."""

import math
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from raw_tables import built, column, settings, table

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.data.build import built_data
from fuxictr_llm.data.in_memory import InMemoryLoader

NAN = float("nan")
GOOD = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def price(**keys):
    return [column("price", "numeric", **{"dtype": "float", **keys})]


def csv(tmp_path, cell, split="valid", **keys):
    """Settings of csv files, in one of which `cell` stands in row 4."""
    params = settings(tmp_path, price(**keys), table(price=list(range(1, 7))), "csv")
    path = Path(params[f"{split}_data"])
    path.write_text(path.read_text().replace("1,4\n", f"1,{cell}\n"))
    return params


def refused(params):
    with pytest.raises(UserError) as error:
        built_data(params)
    assert "\n" not in str(error.value) and not (Path(params["data_root"]) / "made").exists()
    return str(error.value)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
@pytest.mark.parametrize("cell", ["nan", "NaN", "-nan", "inf", "-inf", "Infinity", "1e400", "-1e400", "1e39"])
def test_what_is_no_finite_number_is_named(tmp_path, cell, split):
    message = refused(csv(tmp_path, cell, split))
    assert message.startswith(
        f"column 'price' holds {cell} in data file '{tmp_path}/{split}.csv', row 4 below the header,"
    )
    assert "leave it empty (null in parquet), for which fill_na (0.0) stands" in message


@pytest.mark.parametrize("cell", ["abc", '"1,5"', "2.5 ", "N/A", "null", "1_0", "0x1"])
@pytest.mark.parametrize(
    "keys", [{}, {"dtype": "int"}, {"type": "categorical"}, {"type": "categorical", "dtype": "int"}]
)
def test_a_text_is_named_where_it_stands(tmp_path, cell, keys):
    message, cell = refused(csv(tmp_path, cell, **keys)), cell.strip('"')
    where = f"data file '{tmp_path}/valid.csv', row 4 below the header"
    assert message.startswith(f"column 'price' holds the text {cell!r} in {where}; its dtype is")


@pytest.mark.parametrize("cell", ["", '""'])
def test_an_empty_cell_is_filled_up_or_named(tmp_path, cell):
    assert built(csv(tmp_path, cell, fill_na=-7))["valid"]["price"][3] == -7
    message = refused(csv(tmp_path / "null", cell, fill_na=None))
    assert (
        "column 'price' is empty in data file" in message
        and "row 4 below the header, and its fill_na is null" in message
    )


def test_how_many_rows_there_are_and_which_file_of_a_folder(tmp_path):
    params = settings(tmp_path, price(), table(price=GOOD))
    folder = tmp_path / "parts [1]"
    folder.mkdir()
    for part, values in enumerate((GOOD, [1.0, NAN, 2.0, 3.0, NAN, 4.0], [*GOOD[:5], NAN])):
        table(price=values)["train"].write_parquet(folder / f"{part}.parquet")
    folder = folder.rename(tmp_path / "parts")
    message = refused({**params, "train_data": str(folder)})
    assert f"holds nan in data file '{folder}/1.parquet', row 2 and in 2 more, which" in message
    assert "holds nan in" in refused({**params, "train_data": str(folder), "n_rows": 2})


@pytest.mark.parametrize(
    ("values", "keys", "message"),
    [
        (["1.5", "2"] * 3, {}, "holds the text '1.5' in data file .*, row 1; it is numeric: store it as numbers"),
        (["1.5", "x"] * 3, {}, "holds the text 'x' in data file .*, row 2; it is numeric"),
        (GOOD, {"dtype": "str"}, "holds the text '1.0' .*; in csv give it dtype: float"),
        (pl.Series(["1", "2"] * 3, dtype=pl.Categorical), {}, "holds the text '1'"),
        (pl.Series(["2020-01-01"] * 6).str.to_date(), {}, "stored as Date: it is numeric; store it as numbers"),
        (
            pl.Series([1] * 6).cast(pl.Duration),
            {"type": "categorical", "dtype": "str"},
            "store it as text or as numbers",
        ),
        (pl.Series(["2020-01-01"] * 6).str.to_date(), {"type": "categorical"}, "are no numbers; give it dtype: str"),
        (GOOD, {"fill_na": "x"}, "column 'price' is numeric, and fill_na 'x' a text; give a number, or null"),
        (GOOD, {"fill_na": NAN}, "fill_na nan no finite number"),
        (GOOD, {"fill_na": True}, "fill_na True no finite number"),
        ([1e300, -1e300] * 3, {"normalizer": "StandardScaler"}, "column 'price': the std of its train values is inf"),
        ([None] * 6, {"fill_na": None}, "is empty in .*row 1 and in 5 more, and its fill_na is null"),
    ],
)
def test_other_values_of_parquet_are_one_line(tmp_path, values, keys, message):
    params = settings(tmp_path, price(**keys), table(price=values))
    assert re.search(message, refused(params))


@pytest.mark.parametrize(
    "values",
    [
        pl.Series(GOOD).cast(pl.Decimal(10, 2)),
        pl.Series([1, 2, 3, 4, 5, 6], dtype=pl.UInt8),
        pl.Series(GOOD, dtype=pl.Float32),
    ],
)
def test_numbers_of_other_types_work(tmp_path, values):
    assert built(settings(tmp_path, price(), table(price=values)))["train"]["price"] == GOOD


def test_truth_values_and_nothing_work(tmp_path):
    flags = settings(tmp_path, price(), table(price=[True, False, None] * 2))
    assert built(flags)["train"]["price"] == [1, 0, 0] * 2
    assert built(settings(tmp_path / "none", price(), table(price=[None] * 6)))["train"]["price"] == [0] * 6


def test_what_a_preprocess_step_makes_is_checked(tmp_path, monkeypatch):
    (tmp_path / "logs.py").write_text(
        "import polars as pl\nfrom fuxictr.preprocess import FeatureProcessor\n\n\n"
        "class Logs(FeatureProcessor):\n    def log(self, name):\n        return pl.col(name).log()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    params = settings(tmp_path, price(preprocess="log"), table(price=[1.0, 2.0, -3.0, 4.0, 0.0, 6.0]))
    params["feature_processor"] = "logs:Logs"
    assert (
        "holds nan (made by preprocess) in data file" in (message := refused(params))
        and "row 3 and in 1 more" in message
    )


def test_normalizers_on_odd_columns(tmp_path):
    scaled = price(normalizer="StandardScaler")
    tables = table(1200, price=[0.1] * 1200) | {"valid": table(price=[0.2] * 6)["valid"]}
    made = built(settings(tmp_path, scaled, tables))
    assert max(map(abs, made["train"]["price"])) < 1e-9  # not divided by what rounding leaves of the deviation
    assert made["valid"]["price"] == pytest.approx([0.1] * 6)
    tables = table(price=[0.0, 1e-300] * 3) | {"test": table(price=GOOD)["test"]}
    message = refused(settings(tmp_path / "tiny", price(normalizer="MinMaxScaler"), tables))
    assert "normalizer MinMaxScaler makes " in message and "test.parquet', row 1; correct the value" in message


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2] * 2, r"must be 0 or 1 \(got 2 in row 3\)"),
        ([0.0, 1.0, NAN] * 2, r"must be 0 or 1 \(got nan in row 3\)"),
        ([0, 1, None] * 2, r"must be 0 or 1 \(got None in row 3\)"),
        (["0", "1"] * 3, r"must be 0 or 1 \(got String\); store it as a number"),
        ([1] * 6, "has one value only"),
    ],
)
def test_labels_are_named_by_row(tmp_path, labels, message):
    tables = table(price=GOOD)
    tables["test"] = tables["test"].with_columns(pl.Series("click", labels, strict=False))
    with pytest.raises(UserError, match=f"label 'click' of data file '{tmp_path}/test.parquet' {message}"):
        built_data(settings(tmp_path, price(), tables))


def test_truth_values_and_decimals_are_labels(tmp_path):
    for name, dtype in {"flags": pl.Boolean, "decimals": pl.Decimal(5, 1)}.items():
        tables = {split: rows.with_columns(pl.col("click").cast(dtype)) for split, rows in table(price=GOOD).items()}
        assert built(settings(tmp_path / name, price(), tables))["train"]["click"] == [0, 1] * 3


@pytest.mark.parametrize("wrong", [NAN, math.inf, 1e39])
def test_built_data_of_another_hand_is_checked_when_it_is_read(tmp_path, wrong):
    class Map:
        features, labels = {"price": {"type": "numeric"}}, ["click"]

    np.savez(tmp_path / "made.npz", price=np.array([1.0, 2.0, wrong]), click=np.array([0.0, 1.0, 1.0]))
    with pytest.raises(UserError, match=r"column 'price' of built data .* in row 3, which no model can learn from"):
        InMemoryLoader(Map, str(tmp_path / "made.npz"))
