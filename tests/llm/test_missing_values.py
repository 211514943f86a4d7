"""What FuxiCTR fills in for a missing value is told nowhere: compared with a plain count of the raw files."""

import json
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fuxictr.preprocess import FeatureProcessor

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.language_models import RowTextsConfig
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.data.build import built_data
from fuxictr_llm.experiment.preparation import prepare_data
from fuxictr_llm.llm.catalog import load_catalog
from fuxictr_llm.llm.texts.row_texts import index_rows
from fuxictr_llm.llm.texts.sentences import train_ids, vocabulary_of
from support import edit

SPLITS = ("train", "valid", "test")
# What stands in the raw files, row after row; empty: missing.
AGES = ["3", "", "1", "3", "7", ""]
COLUMN = "    - {{name: age, active: true, dtype: {dtype}, type: {kind}{more}}}\n"


def shop_with(configs, tmp_path, raw, dtype="int", kind="categorical", more="", columns=""):
    """A run of the shop whose column `age` holds `raw` (of each split, or of all), and its catalog's values of it."""
    raw = raw if isinstance(raw, dict) else dict.fromkeys(SPLITS, raw)
    for split in SPLITS:
        path = tmp_path / "raw" / f"{split}.csv"
        header, *rows = path.read_text(encoding="utf-8").splitlines()
        ages = np.resize(raw[split], len(rows)).tolist()
        lines = [f"age,{header}", *(f"{age},{row}" for age, row in zip(ages, rows, strict=True))]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    column = COLUMN.format(dtype=dtype, kind=kind, more=more)
    edit(configs / "dataset_config.yaml", "    label_col:", f"{columns}{column}    label_col:")
    return prepare_data(load_experiment("DeepFM_shop", configs), "unused")


def catalog_values(run, name="age"):
    catalog = load_catalog(run.feature_map, run.data_dir, None)
    return next(field.values for field in catalog.fields if field.name == name)


def texts(run):
    """The distinct texts of rows that tell the age alone."""
    (unit,) = index_rows(RowTextsConfig(text_fields=["age"], text_units="row"), run).units
    return set(unit)


def told(*values):
    return {f"age is {value}." if value else "" for value in values}


@pytest.mark.parametrize(
    ("dtype", "kind", "more", "values"),
    [
        ("int", "categorical", "", ["3", "1", "7"]),
        ("int", "categorical", ", fill_na: -1", ["3", "1", "7"]),
        ("float", "categorical", "", ["3.0", "1.0", "7.0"]),
        ("float", "categorical", ", fill_na: .nan", ["3.0", "1.0", "7.0"]),
        ("float", "categorical", ", fill_na: null", ["3.0", "1.0", "7.0"]),
        ("str", "categorical", "", ["3", "1", "7"]),
        ("str", "categorical", ", fill_na: '0'", ["3", "1", "7"]),
        ("str", "categorical", ", fill_na: none", ["3", "1", "7"]),
        ("int", "numeric", "", ["1", "3", "7"]),
        ("float", "numeric", "", ["1", "3", "7"]),
        ("float", "numeric", ", fill_na: -0.3", ["1", "3", "7"]),
    ],
)
def test_a_filled_value_is_in_no_list_and_in_no_text(configs, tmp_path, caplog, dtype, kind, more, values):
    run = shop_with(configs, tmp_path, AGES, dtype, kind, more)
    assert list(catalog_values(run)) == values
    assert texts(run) == told(*values, "")
    if kind == "categorical":
        assert set(vocabulary_of(run, "age")[0]) == set(train_ids(run, "age")[0]) == set(values)
    assert "lack a value" not in caplog.text


@pytest.mark.parametrize(("dtype", "kind"), [("int", "categorical"), ("float", "numeric")])
def test_a_real_zero_is_told_where_nothing_is_missing(configs, tmp_path, dtype, kind):
    run = shop_with(configs, tmp_path, ["0", "3", "0"], dtype, kind)
    assert set(catalog_values(run)) == {"0", "3"} and texts(run) == told("0", "3")


def test_a_zero_that_is_both_counts_as_a_value_but_no_row_is_told_of_it(configs, tmp_path, caplog):
    run = shop_with(configs, tmp_path, ["0", "", "0", "3", "3", "3"], "int")
    rows = Counter(np.resize(["0", "", "0", "3", "3", "3"], 900).tolist())
    known = json.loads((run.data_dir / "field_texts.json").read_text())["age"]
    assert known["values"] == ["3", "0"] and known["counts"] == [rows["3"], rows["0"]]
    assert known["filled"] == {"0": [200, 400]}
    assert texts(run) == told("3", "")
    warning = next(record.getMessage() for record in caplog.records if "lack a value" in record.getMessage())
    assert warning.startswith("column 'age': 200 rows lack a value and get 0 for it, as 400 rows have in the raw files")


def test_what_is_missing_in_another_split_decides_too(configs, tmp_path):
    run = shop_with(configs, tmp_path, {"train": ["0", "3"], "valid": ["3"], "test": ["", "3"]}, "float", "numeric")
    assert catalog_values(run) == ("0", "3")  # in train it is real
    assert texts(run) == told("3", "")


def test_a_column_without_any_value_is_told_nowhere(configs, tmp_path):
    run = shop_with(configs, tmp_path, [""])
    assert catalog_values(run) == ()
    assert texts(run) == {""}
    assert vocabulary_of(run, "age")[0] == ()


@pytest.mark.parametrize("more", ["", ", fill_na: null", ", fill_na: -1"])
def test_not_a_number_is_no_value_of_a_float_category(configs, tmp_path, more):
    run = shop_with(configs, tmp_path, ["1.5", "nan", "NaN", "2.0"], "float", more=more)
    assert set(catalog_values(run)) == {"1.5", "2.0"} and texts(run) == told("1.5", "2.0", "")
    (run.data_dir / "field_texts.json").unlink()  # as of a data set that FuxiCTR built
    assert set(catalog_values(run)) == set(vocabulary_of(run, "age")[0]) == {"1.5", "2.0"}


@pytest.mark.parametrize("fill", ["'0'", "''", "none"])
def test_a_text_for_missing_numbers_is_named(configs, tmp_path, fill):
    with pytest.raises(
        UserError, match="fill_na in feature_cols of 'age' is .* where dtype is float; it must be a number"
    ):
        shop_with(configs, tmp_path, AGES, "float", "numeric", f", fill_na: {fill}")


def test_a_text_that_reads_nan_is_a_value(configs, tmp_path):
    run = shop_with(configs, tmp_path, ["nan", "NaN", "Oslo"], "str")
    assert set(catalog_values(run)) == {"nan", "NaN", "Oslo"}


@pytest.mark.parametrize(("dtype", "values"), [("str", {"true", "false"}), ("int", {"0", "1"})])
def test_truth_values_of_parquet_that_are_missing_are_not_false(configs, tmp_path, dtype, values):
    for split in SPLITS:
        table = pd.read_csv(tmp_path / "raw" / f"{split}.csv", dtype={"user": str}).convert_dtypes()
        flags = pd.array(np.resize([True, None, False], len(table)), dtype="boolean")
        table.assign(flag=flags).to_parquet(tmp_path / "raw" / f"{split}.parquet")
    config = configs / "dataset_config.yaml"
    config.write_text(config.read_text().replace("csv", "parquet"))
    edit(config, "    label_col:", COLUMN.format(dtype=dtype, kind="categorical", more="") + "    label_col:")
    edit(config, "name: age", "name: flag")
    edit(config, "    min_categr_count: 1", "    rebuild_dataset: true")
    run = prepare_data(load_experiment("DeepFM_shop", configs), "unused")
    assert set(catalog_values(run, "flag")) == values
    told_of = set(train_ids(run, "flag")[0])
    assert told_of == (values - {"0"})  # as a number, false is what FuxiCTR fills in


def test_sequences_have_no_missing_items(configs, tmp_path):
    run = shop_with(configs, tmp_path, ["a^^b", "", "none^a"], "str", "sequence", ", splitter: ^, fill_na: none")
    assert set(catalog_values(run)) == {"a", "b"}
    assert texts(run) == told("a, b", "a", "")


def test_a_column_that_shares_the_embedding_keeps_its_own_missing_values(configs, tmp_path):
    other = "    - {name: other, active: true, dtype: int, type: categorical}\n"
    for split in SPLITS:
        path = tmp_path / "raw" / f"{split}.csv"
        header, *rows = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join([f"other,{header}", *(f"-1,{row}" for row in rows)]) + "\n", encoding="utf-8")
    run = shop_with(configs, tmp_path, AGES, "int", more=", fill_na: -1, share_embedding: other", columns=other)
    assert catalog_values(run, "other") == ("-1",) and "-1" in train_ids(run, "other")[0]
    assert texts(run) == told("1", "3", "7", "")
    assert "-1" not in vocabulary_of(run, "other")[0]  # one vector for what is missing and what is not


PROCESSOR = """
import polars as pl
from fuxictr.preprocess import FeatureProcessor


class Decades(FeatureProcessor):
    def decade(self, name):
        return (pl.col(name) // 10 * 10 + 5).cast(pl.String)

    def length(self, name):
        return pl.col(name).map_elements(len, return_dtype=pl.Int64, skip_nulls=False)
"""


def test_what_a_preprocess_step_makes_of_a_missing_value_is_none(configs, tmp_path, monkeypatch):
    Path("ages.py").write_text(PROCESSOR)
    monkeypatch.syspath_prepend(tmp_path)
    edit(configs / "dataset_config.yaml", "    min_categr_count: 1", "    feature_processor: ages:Decades")
    run = shop_with(configs, tmp_path, ["31", "", "12", "44"], more=", preprocess: decade(age)")
    assert set(catalog_values(run)) == {"35", "15", "45"} and texts(run) == told("35", "15", "45", "")


def test_a_preprocess_step_that_needs_filled_values_is_left_to_it(configs, tmp_path, monkeypatch, caplog):
    Path("ages2.py").write_text(PROCESSOR)
    monkeypatch.syspath_prepend(tmp_path)
    edit(configs / "dataset_config.yaml", "    min_categr_count: 1", "    feature_processor: ages2:Decades")
    run = shop_with(configs, tmp_path, ["abc", "", "d"], "str", more=", preprocess: length(age)")
    assert {"3", "1"} <= set(catalog_values(run))
    assert "Which values of age are missing is not known" in caplog.text


def test_blocks_have_the_same_texts_and_fuxictrs_own_pickle(configs, tmp_path):
    run = shop_with(configs, tmp_path, ["0", "", "4"], "int")
    known = run.data_dir / "field_texts.json"
    in_memory = json.loads(known.read_text())
    built_data(load_experiment("DeepFM_shop", configs).params | {"data_block_size": 100})
    assert json.loads(known.read_text()) == in_memory
    assert list(in_memory) == ["color", "city", "user", "tags", "age"]
    assert in_memory["age"]["filled"] == {"0": [400, 400]}
    processor = pickle.loads((run.data_dir / "feature_processor.pkl").read_bytes())
    assert type(processor) is FeatureProcessor
