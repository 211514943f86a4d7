"""Lists of parquet give what the same data gives as csv with a splitter, whatever they hold."""

import itertools
from datetime import date

import numpy as np
import pandas as pd
import polars as pl
import pytest
from raw_tables import built, column, settings, table

from fuxictr_llm.common.errors import UserError

NAN = float("nan")
LISTS = [["a", "b"], ["b"], [], None, ["c", None, "a"], ["a", "a", "a"]]
NUMBERS = {"a": 10, "b": 2, "c": 7}
VECTORS = [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [0.0, 1.0], [2.0, 2.0], [7.0, 8.0]]


def as_text(values, missing):
    return "^".join(str(missing if value is None else value) for value in values) if values else missing


def with_values(lists, words):
    return [values if values is None else [words.get(value) for value in values] for values in lists]


def ids(tmp_path, values, data_format="parquet", **more):
    made = built(settings(tmp_path, [column("h", "sequence", **more)], table(h=values), data_format))
    return made["feature_vocab"]["h"], made["train"]["h"]


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize(("padding", "max_len", "least"), itertools.product(("pre", "post"), (0, 2, 5), (1, 2)))
@pytest.mark.parametrize("shared", [{}, {"share_embedding": "item"}])
def test_lists_are_built_as_the_same_data_in_csv(tmp_path, numbers, padding, max_len, least, shared):
    keys = {"padding": padding, "min_categr_count": least, "splitter": "^", **shared}
    keys |= {"max_len": max_len} if max_len else {}
    columns = [column("item", "categorical"), column("h", "sequence", **keys)]
    items = ["a", "b", "a", "c", "c", "b"]
    words = NUMBERS if numbers else {value: value for value in "abc"}
    lists = table(item=[words[item] for item in items], h=with_values(LISTS, words))
    texts = [as_text(values, "") for values in with_values(LISTS, words)]
    csv = table(item=[str(words[item]) for item in items], h=texts)
    found = built(settings(tmp_path / "lists", columns, lists))
    assert found == built(settings(tmp_path / "csv", columns, csv, "csv"))
    if max_len == 5 and least == 1:
        known = found["feature_vocab"]["h"]
        a, b, c = (known[str(words[value])] for value in "abc")
        rows = [[a, b], [b], [], [], [c, 0, a], [a, a, a]]
        padded = [([0] * (5 - len(row)) + row) if padding == "pre" else (row + [0] * (5 - len(row))) for row in rows]
        assert found["train"]["h"] == padded


@pytest.mark.parametrize("keys", [{}, {"fill_na": None}, {"splitter": ","}, {"splitter": "a"}])
def test_no_list_is_one_value_and_no_value_is_cut(tmp_path, keys):
    lists = [["a^b", "a,b"], ["a^b"], [], None, ["ä b", "\n"], ["\x1f", '"']]
    vocabulary, rows = ids(tmp_path, lists, **keys)
    assert vocabulary.keys() == {"a^b", "a,b", "ä b", "\n", "\x1f", '"', "__PAD__", "__OOV__"}
    assert rows == [[vocabulary[value] for value in values or []] + [0] * (2 - len(values or [])) for values in lists]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (pl.Series([[1.0, NAN], [2.0], [], None, [1.0, None], [3.5]]), {"1", "2", "3.5"}),
        (pl.Series([[True], [False], None, [], [True], [None]]), {"true", "false"}),
        (pl.Series([["a"], ["b"], None, [], ["a"], ["c"]], dtype=pl.List(pl.Categorical)), {"a", "b", "c"}),
        (pl.Series([["a", "b"]] * 6, dtype=pl.Array(pl.String, 2)), {"a", "b"}),
        (pl.Series([[date(2020, 1, 2)]] * 6), {"2020-01-02"}),
        (pl.Series([[2**60], [1], [2], None, [], [1]]), {"1", "2", str(2**60)}),
        (pl.Series([1, 2, 2, None, 3, 1]), {"1", "2", "3"}),
        (["a^b", "b", "", None, "a", "c"], {"a", "b", "c"}),
    ],
)
def test_any_type_of_values(tmp_path, values, words):
    vocabulary, rows = ids(tmp_path, values)
    assert vocabulary.keys() - {"__PAD__", "__OOV__"} == words
    assert {index for row in rows for index in row} - {0} == {vocabulary[word] for word in words}


def test_arrays_of_numpy_and_pandas(tmp_path):
    params = settings(tmp_path, [column("h", "sequence"), column("v", "embedding", "float", pretrain_dim=3)], {})
    for split in ("train", "valid", "test"):
        rows = {"h": [np.arange(n) for n in range(4)], "v": list(np.eye(4, 3, dtype=np.float32)), "click": [0, 1, 0, 1]}
        pd.DataFrame(rows).to_parquet(tmp_path / f"{split}.parquet")
        params[f"{split}_data"] = str(tmp_path / f"{split}.parquet")
    found = built(params)
    known = found["feature_vocab"]["h"]
    assert found["train"]["h"] == [[known[str(i)] if i < n else 0 for i in range(3)] for n in range(4)]
    assert found["train"]["v"] == np.eye(4, 3).tolist()


@pytest.mark.parametrize("name", ["h", "copy"])
def test_values_of_a_made_column(tmp_path, name):
    made = column("copy", "sequence", splitter="|", preprocess="copy_from(h)")
    found = built(settings(tmp_path, [column("h", "sequence"), made], table(h=LISTS)))
    assert found["feature_vocab"][name].keys() == {*"abc", "__PAD__", "__OOV__"}
    assert found["train"]["copy"] == found["train"]["h"]


def test_lists_of_which_one_split_has_none_are_refused(tmp_path):
    texts = table(h=[as_text(values, "") for values in LISTS])
    mixed = table(h=LISTS) | {"valid": texts["valid"]}
    with pytest.raises(UserError, match="column 'h' holds lists in train_data and none in valid_data; store it alike"):
        built(settings(tmp_path, [column("h", "sequence")], mixed))
    empty = table(h=LISTS) | {"valid": table(h=[None] * 6)["valid"]}
    assert built(settings(tmp_path, [column("h", "sequence")], empty))["valid"]["h"] == [[0, 0, 0]] * 6


def vectors(values, **keys):
    return [column("v", "embedding", "float", pretrain_dim=2, **keys)], table(v=values)


@pytest.mark.parametrize(
    "dtype", [pl.List(pl.Float64), pl.Array(pl.Float32, 2), pl.List(pl.Int8), pl.Array(pl.Float64, 2)]
)
def test_vectors_of_any_type(tmp_path, dtype):
    assert built(settings(tmp_path, *vectors(pl.Series(VECTORS).cast(dtype))))["test"]["v"] == VECTORS


@pytest.mark.parametrize(("fill", "stands"), [({}, 0.0), ({"fill_na": -1}, -1.0)])
def test_what_is_missing_of_a_vector_is_filled_up(tmp_path, fill, stands):
    values = [VECTORS[0], None, [None, 6.0], *VECTORS[3:]]
    rows = [VECTORS[0], [stands, stands], [stands, 6.0], *VECTORS[3:]]
    assert built(settings(tmp_path, *vectors(values, **fill)))["train"]["v"] == rows
    nothing = vectors([None] * 6, **fill)
    assert built(settings(tmp_path / "nothing", *nothing))["train"]["v"] == [[stands, stands]] * 6


@pytest.mark.parametrize(
    ("wrong", "keys", "message"),
    [
        ([1.0], {}, r"a vector of 1 numbers \(pretrain_dim is 2\)"),
        ([1.0, 2.0, 3.0], {}, r"a vector of 3 numbers \(pretrain_dim is 2\)"),
        ([], {}, r"a vector of 0 numbers \(pretrain_dim is 2\)"),
        ([1.0, NAN], {}, "a vector whose number 2 is nan"),
        ([float("-inf"), NAN], {}, "a vector whose number 1 is -inf"),
        ([1e39, 0.0], {}, r"a vector whose number 1 is 1e\+39"),
        (None, {"fill_na": None}, r"no vector \(null, as its fill_na\)"),
        ([None, 1.0], {"fill_na": None}, "a vector whose number 1 is null"),
    ],
)
def test_a_wrong_vector_is_named_by_its_row(tmp_path, wrong, keys, message):
    columns, tables = vectors(VECTORS, **keys)
    tables["test"] = table(v=[*VECTORS[:4], wrong, VECTORS[5]])["test"]
    with pytest.raises(UserError, match=f"column 'v' holds {message} in data file '.*test.parquet', row 5; correct it"):
        built(settings(tmp_path, columns, tables))


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("categorical", LISTS, r"stored as List\(String\): its type is categorical; give it type: sequence"),
        ("meta", LISTS, "its type is meta; give it type: sequence"),
        ("numeric", VECTORS, "its type is numeric; give it type: embedding"),
        ("embedding", [1.0] * 6, "stored as Float64: a column of type embedding holds lists of numbers"),
        ("embedding", LISTS, r"holds \['a', 'b'\], no list of numbers, in data file '.*train.parquet', row 1"),
        ("embedding", ["1^2"] * 6, "holds the text '1.2' in data file '.*', row 1; vectors are lists of numbers"),
        ("embedding", [[[1.0]]] * 6, "a column of type embedding holds lists of numbers"),
        ("sequence", [[["a"]]] * 6, "a sequence is a list of texts or numbers"),
        ("sequence", [{"a": 1}] * 6, "a sequence is a list of texts or numbers"),
        ("sequence", [[]] * 6, "column 'x' has no value that occurs"),
    ],
)
def test_what_is_no_such_list_is_one_line(tmp_path, kind, values, message):
    with pytest.raises(UserError, match=message) as error:
        built(
            settings(
                tmp_path, [column("x", kind, "float" if kind == "numeric" else "str", pretrain_dim=2)], table(x=values)
            )
        )
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("width", [None, 0, "2", True])
def test_a_vector_needs_its_width(tmp_path, width):
    with pytest.raises(UserError, match="column 'v' of type embedding needs pretrain_dim"):
        built(settings(tmp_path, [column("v", "embedding", "float", pretrain_dim=width)], table(v=VECTORS)))
