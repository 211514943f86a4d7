"""Raw rows become the ids and values that the build made of them, whatever form they come in."""

import json
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest
from raw_tables import column, settings

from fuxictr_llm.common.errors import UserError
from fuxictr_llm.config.resolve import load_experiment
from fuxictr_llm.serving.rows import as_frame, row_in_words
from raw_forms import write_published
from support_serving import raw_rows_of

ROWS = {"train": 120, "valid": 20, "test": 60}


def drawn(seed, pool, rows):
    """Values of a pool, a tenth missing; train lacks the last one."""
    draw = np.random.default_rng([seed, rows])
    pool = pool[:-1] if rows == ROWS["train"] else pool
    return [None if draw.random() < 0.1 else pool[index] for index in draw.choice(len(pool), rows)]


COLUMNS = {
    "word": (column("word", "categorical"), ["red", "grün", "a b", "0", "01", "__OOV__", "new"]),
    "filled": (column("filled", "categorical", fill_na="none"), ["red", "none", "new"]),
    "whole": (column("whole", "categorical", "int"), [-3, 0, 2**53 - 1, 7, 8]),
    "whole_filled": (column("whole_filled", "categorical", "int", fill_na=-1), [1, 2, 3]),
    "real": (column("real", "categorical", "float"), [-0.0, 0.1, 1e300, 2.5, 3.5]),
    "tags": (column("tags", "sequence", max_len=3, splitter="|"), ["a|b", "b", "a||c", "a|b|c|d|e", "a|other"]),
    "pre": (column("pre", "sequence", padding="pre", share_embedding="word", fill_na="red"), ["red", "0^a b", "new"]),
    "price": (column("price", "numeric", "float", fill_na=1.5), [0.25, -2.0, 1e5]),
    "scaled": (column("scaled", "numeric", "float", normalizer="StandardScaler"), [0.1, 4.0, 1e4]),
    "ranged": (column("ranged", "numeric", "int", normalizer="MinMaxScaler"), [4, -2, 9]),
    "copy": (column("copy", "categorical", preprocess="copy_from(whole)"), None),
}


def made(tmp_path, data_format):
    columns = [col for col, _ in COLUMNS.values()]
    tables = {}
    for split, rows in ROWS.items():
        values = {name: drawn(seed, pool, rows) for seed, (name, (_, pool)) in enumerate(COLUMNS.items()) if pool}
        tables[split] = pl.DataFrame({"click": np.arange(rows) % 2, **values})
    return settings(tmp_path, columns, tables, data_format), tables["test"]


def assert_as_built(raw, files, rows):
    batch, counts = raw(rows, row_in_words)
    built = pq.read_table(files["test_data"]).to_pydict()
    assert list(batch) == raw.fields
    for name, values in batch.items():
        np.testing.assert_array_equal(values, np.asarray(built[name]), name)
    return counts


@pytest.mark.parametrize("data_format", ["csv", "parquet"])
def test_every_kind_of_column(tmp_path, data_format):
    params, test = made(tmp_path, data_format)
    raw, files = raw_rows_of(params)
    as_text = pl.read_csv(test.write_csv().encode(), infer_schema=False)
    counts = assert_as_built(raw, files, as_text)
    assert counts.rows == 60 and counts.blank == {
        name: count for name in raw.needed if (count := test[name].null_count())
    }
    unseen = {"word": ["new", "__OOV__"], "filled": ["new"], "whole": [8], "real": [3.5], "copy": [8]}
    for name, values in unseen.items():
        assert counts.unseen[name] == test[name if name != "copy" else "whole"].is_in(values).sum(), name
    assert counts.unseen["tags"] == sum((cell or "").split("|")[:3].count("other") for cell in test["tags"])
    for rows in (test, test.select(reversed(test.columns)), as_frame(test.to_dicts(), raw.needed)):
        assert_as_built(raw, files, rows)
    assert_as_built(raw, files, as_frame(test.to_pandas(), raw.needed))  # whole numbers are floats there
    assert raw(test.head(0), row_in_words)[0]["tags"].shape == (0, 3)


def test_lists_are_what_texts_with_a_splitter_are(tmp_path):
    params, test = made(tmp_path, "parquet")
    raw, files = raw_rows_of(params)
    lists = test.with_columns(pl.col("tags").str.split("|"), pl.col("pre").str.split("^"))
    assert_as_built(raw, files, lists)
    assert_as_built(raw, files, as_frame(lists.to_dicts(), raw.needed, raw.lists))


@pytest.mark.parametrize("dataset_id", ["criteo_x4_001", "avazu_x4_001", "kkbox_x1", "taobaoad_x1"])
def test_packaged_processors(dataset_id):
    params = load_experiment(f"DeepFM_{dataset_id}", overrides={"num_threads": 1}).params
    write_published(params)
    raw, files = raw_rows_of(params)
    rows = pl.read_csv(params["test_data"], infer_schema=False)
    assert_as_built(raw, files, rows)
    assert_as_built(raw, files, as_frame(pd.read_csv(params["test_data"], dtype=str), raw.needed))
    made_columns = {"weekday", "weekend"}  # of the hour
    assert {*raw.needed} == {*raw.fields} - made_columns


def test_embeddings_of_given_vectors(tmp_path):
    draw = np.random.default_rng(0)
    vectors = {split: [None, *draw.random((rows - 1, 3)).round(2).tolist()] for split, rows in ROWS.items()}
    tables = {
        split: pl.DataFrame({"click": np.arange(rows) % 2, "image": vectors[split]}) for split, rows in ROWS.items()
    }
    raw, files = raw_rows_of(settings(tmp_path, [column("image", "embedding", "float", pretrain_dim=3)], tables))
    assert_as_built(raw, files, tables["test"])
    assert raw(pl.DataFrame({"image": [[1, 2, 3]]}), row_in_words)[0]["image"].tolist() == [[1, 2, 3]]
    for wrong, message in (
        ([[1.0, 2.0]], "no vector of 3 finite numbers in row 1"),
        (["a"], "lists of numbers, which csv"),
    ):
        with pytest.raises(UserError, match=message):
            raw(pl.DataFrame({"image": wrong}), row_in_words)


def test_values_that_came_later_have_their_ids(tmp_path):
    params, test = made(tmp_path, "csv")
    raw, _ = raw_rows_of(params, {"word": {"new": 50}, "pre": {"new": 50}})
    rows = test.with_columns(word=pl.lit("new"), pre=pl.lit("red^new"))
    batch, counts = raw(rows, row_in_words)
    assert (batch["word"] == 50).all() and (batch["pre"] == 50).sum() == 60
    assert not {"word", "pre"} & counts.unseen.keys()


FORMS = {
    "polars": lambda rows: rows,
    "lazy": lambda rows: rows.lazy(),
    "pandas": lambda rows: rows.to_pandas(),
    "columns": lambda rows: rows.to_dict(as_series=False),
    "arrays": lambda rows: {name: rows[name].to_numpy() for name in rows.columns},
    "rows": lambda rows: rows.to_dicts(),
    "json": lambda rows: json.loads(json.dumps(rows.to_dicts())),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_rows(form):
    rows = pl.DataFrame({"user": [1, 2, 3], "name": ["a", None, "c"], "price": [0.5, 1.0, None], "more": [1, 1, 1]})
    frame = as_frame(FORMS[form](rows), ["name", "user", "price", "absent"])
    assert frame.columns == ["name", "user", "price"]
    expected = rows.select("name", "user", "price")
    if form == "arrays":  # numpy has no missing number
        expected = expected.with_columns(pl.col("price").fill_null(float("nan")))
    assert frame.with_columns(pl.col("name").cast(pl.String)).equals(expected)


def test_forms_of_one_row_and_of_lists():
    one = {"user": 5, "tags": ["a", "b"]}
    frame = as_frame(one, ["user", "tags"], ["tags"])
    assert frame.to_dicts() == [one] == as_frame([one], ["user", "tags"], ["tags"]).to_dicts()
    assert as_frame({"user": [5, 6], "tags": [["a"], []]}, ["user", "tags"], ["tags"]).height == 2
    mixed = as_frame([{"user": 5}, {"user": "x"}, {"more": 1}], ["user"])
    assert mixed["user"].to_list() == ["5", "x", None]
    assert as_frame([], ["user"]).shape == (0, 1)
    for wrong, message in (
        (5, r"rows are a dict, a list of dicts, a pandas or a polars frame \(got int\)"),
        ("text", r"\(got str\)"),
        ([1, 2], r"\(got list\)"),
        ({"user": 5, "item": [1, 2]}, "one value of 'user' and several of 'item'"),
        ({"user": [5], "item": [1, 2]}, "'item' has 2 rows, 'user' has 1"),
    ):
        with pytest.raises(UserError, match=message):
            as_frame(wrong, ["user", "item"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"word": None}, "the rows have no column 'word'; they have: "),
        (
            {"whole": "x7"},
            "column 'whole' holds the text 'x7' in row 2; its dtype is int; correct it, or leave it empty",
        ),
        ({"whole": 1.5}, "column 'whole' holds 1.5 in row 2"),
        ({"whole": 2.0**54}, "column 'whole' holds the float 1.801.*, too large for an exact whole number"),
        ({"word": 2.0**54}, "column 'word' holds the float 1.801.*, too large for an exact whole number"),
        ({"price": "1,5"}, "column 'price' holds the text '1,5' in row 2; its dtype is float"),
        ({"price": "nan"}, "column 'price' holds nan in row 2, which no model can take; correct it, or leave it empty"),
        ({"scaled": float("inf")}, "column 'scaled' holds inf in row 2"),
        ({"word": {"a": 1}}, "column 'word' holds values of type Struct"),
    ],
)
def test_cells_that_cannot_be_used(tmp_path, changes, message):
    params, test = made(tmp_path, "csv")
    raw, _ = raw_rows_of(params)
    rows = test.head(3).to_dicts()
    for name, value in changes.items():
        for row in rows:
            if value is None:
                del row[name]
            elif row is rows[1] or isinstance(value, dict):
                row[name] = value
            else:
                row[name] = None if isinstance(value, str) else 1.0
    with pytest.raises(UserError, match=message) as error:
        raw(as_frame(rows, raw.needed, raw.lists), row_in_words)
    assert "\n" not in str(error.value)


def test_threads_share_it(tmp_path):
    params, test = made(tmp_path, "csv")
    raw, _ = raw_rows_of(params)
    expected = [raw(test.slice(row, 1), row_in_words)[0] for row in range(20)]
    answers = {}

    def ask(thread):
        for row in range(20):
            lists = test.slice(row, 1).with_columns(pl.col("tags").str.split("|")) if thread % 2 else test.slice(row, 1)
            answers[thread, row] = raw(lists, row_in_words)[0]

    threads = [threading.Thread(target=ask, args=(thread,)) for thread in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 160
    for (_, row), batch in answers.items():
        assert all(np.array_equal(batch[name], values) for name, values in expected[row].items())


def test_the_built_data_set_says_why_raw_rows_cannot_be_served(tmp_path, monkeypatch):
    Path("own_transform.py").write_text(
        "from fuxictr.preprocess import FeatureProcessor\n\n\nclass Own(FeatureProcessor):\n"
        "    def transform(self, batch):\n        return super().transform(batch)\n"
    )
    monkeypatch.syspath_prepend(".")
    params, _ = made(tmp_path, "csv")
    with pytest.raises(AssertionError):
        raw_rows_of({**params, "feature_processor": "own_transform:Own"})
    content = json.loads((Path(params["data_root"]) / "made" / "preprocessing.json").read_text())
    assert "'own_transform:Own' has a transform of its own" in content["unservable"] and content["code"]
